import { PathRefused } from "../domain/relative-path.ts";
import { refuseSeccompLog } from "../sandbox/seccomp-log.ts";
import { builtInProfile, maxProfileBytes, parseSeccompProfile, type SeccompProfile, tightestOf } from "../sandbox/seccomp-profile.ts";
import { readHomeFile } from "../storage/home-file.ts";

export type SeccompProfiles = {
  /** What all of the named profiles allow, or why one of them cannot be used, as a clause. */
  of(names: readonly string[]): Promise<SeccompProfile | string>;
};

/**
 * The filters that modes name: built-in ones, and files below the administrator's home, written `./profiles/build.json`. A file is read
 * when it is first asked for; as with `config.yaml`, a change takes a restart.
 */
export function createSeccompProfiles({ home }: { readonly home: string }): SeccompProfiles {
  const known = new Map<string, Promise<SeccompProfile | string>>();
  const once = (key: string, make: () => Promise<SeccompProfile | string>): Promise<SeccompProfile | string> => {
    const kept = known.get(key) ?? make();
    known.set(key, kept);
    return kept;
  };
  return {
    of: (names) =>
      once(names.join("\0"), async () => {
        const found = await Promise.all(names.map((name) => once(`one\0${name}`, () => readProfile(home, name))));
        const fault = found.find((one) => typeof one === "string");
        if (fault !== undefined) return fault;
        const [first, ...others] = found as SeccompProfile[];
        return first === undefined ? "no seccomp profile is named" : tightestOf([first, ...others]);
      }),
  };
}

async function readProfile(home: string, name: string): Promise<SeccompProfile | string> {
  const builtIn = builtInProfile(name);
  if (builtIn !== undefined) return (builtIn.denied === "log" ? refuseSeccompLog() : undefined) ?? builtIn;
  if (!name.startsWith("./")) return `there is no seccomp profile ${JSON.stringify(name)}; a file below the home is written ./<path>`;
  const found = await readFile(home, name.slice(2));
  const profile = typeof found === "string" ? found : parseSeccompProfile(found.text);
  return typeof profile === "string" ? `the seccomp profile ${name} cannot be used: ${profile}` : profile;
}

async function readFile(home: string, relative: string): Promise<{ readonly text: string } | string> {
  // A tenant's own programs write there.
  if (relative === "tenants" || relative.startsWith("tenants/")) return "it lies among the tenants' files";
  try {
    const file = await readHomeFile(home, relative, { maxBytes: maxProfileBytes });
    if (file === undefined) return "there is no such file";
    return file.isCut ? `it is longer than ${maxProfileBytes} bytes` : { text: file.bytes.toString("utf8") };
  } catch (error) {
    if (error instanceof PathRefused) return `its path ${error.reason}`;
    return `it cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`;
  }
}
