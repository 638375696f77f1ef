import { lstatSync, readlinkSync } from "node:fs";
import type { SandboxLimits } from "./sandbox-driver.ts";

/** The uid and gid that a program sees itself as. */
const INNER_ID = "1000";
const SHM_BYTES = 16 * 1024 * 1024;

/** Descriptors that bubblewrap is started with beside stdin, stdout and stderr; it closes all but `go`, which `goScript` closes. */
export const bwrapFds = { args: 3, status: 4, seccomp: 5, passwd: 6, group: 7, go: 8 } as const;

/**
 * The first thing to run inside. It says that it is there and waits for our word. bubblewrap ties its two processes' lives to ours one
 * after the other while it starts, and a gateway killed in between would leave a sandbox that nobody ends: it reads nothing then but
 * the end of the descriptor, and ends itself.
 */
export const goScript = `echo ready >&${bwrapFds.go} && read -r go <&${bwrapFds.go} || exit 125; exec ${bwrapFds.go}<&-; exec "$@"`;

export const passwdFile = "agent:x:1000:1000:agent:/work:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n";
export const groupFile = "agent:x:1000:\nnogroup:x:65534:\n";

/** The whole environment of a program; nothing of ours is in it. */
const environment: Readonly<Record<string, string>> = {
  PATH: "/usr/local/bin:/usr/bin:/bin",
  HOME: "/work",
  USER: "agent",
  LOGNAME: "agent",
  SHELL: "/bin/bash",
  LANG: "C.UTF-8",
  TMPDIR: "/tmp",
  TERM: "dumb",
};

/**
 * What bubblewrap reads from its `--args` descriptor: on its command line the program could read them in /proc/1/cmdline.
 * Order matters: the root is made read-only last, `--perms` and `--size` apply to the next operation only.
 */
export function bwrapArguments(workDirectory: string, { tmpBytes }: Pick<SandboxLimits, "tmpBytes">): string[] {
  const tmpfs = (bytes: number, path: string): string[] => ["--perms", "1777", "--size", String(bytes), "--tmpfs", path];
  const readOnly = (path: string): string[] => ["--ro-bind-try", path, path];
  return [
    ...["--unshare-all", "--unshare-user", "--disable-userns", "--uid", INNER_ID, "--gid", INNER_ID, "--hostname", "sandbox"],
    ...["--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"],
    ...Object.entries(environment).flatMap(([name, value]) => ["--setenv", name, value]),
    ...["--ro-bind", "/usr", "/usr", ...systemLinks()],
    ...["--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/etc/ssl"],
    ...[...readOnly("/etc/ld.so.cache"), ...readOnly("/etc/alternatives"), ...readOnly("/etc/ssl/certs")],
    ...["--perms", "0444", "--file", String(bwrapFds.passwd), "/etc/passwd"],
    ...["--perms", "0444", "--file", String(bwrapFds.group), "/etc/group"],
    ...["--proc", "/proc", "--dev", "/dev", ...tmpfs(Math.min(SHM_BYTES, tmpBytes), "/dev/shm"), "--remount-ro", "/dev"],
    ...tmpfs(tmpBytes, "/tmp"),
    ...["--bind", workDirectory, "/work", "--chdir", "/work", "--remount-ro", "/"],
    ...["--seccomp", String(bwrapFds.seccomp)],
  ];
}

let systemLinksOfHost: readonly string[] | undefined;

/** /bin, /lib and their like as the host has them: links into /usr on a merged system, directories of their own on an old one. */
function systemLinks(): readonly string[] {
  systemLinksOfHost ??= ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"].flatMap((path) => {
    const found = lstatSync(path, { throwIfNoEntry: false });
    if (found?.isSymbolicLink()) return ["--symlink", readlinkSync(path), path];
    return found?.isDirectory() ? ["--ro-bind", path, path] : [];
  });
  return systemLinksOfHost;
}

/** Limits that hold every process by itself. `prlimit` sets soft and hard alike, so no program can raise them. */
export function rlimitArguments(limits: SandboxLimits, hardLimits: ReadonlyMap<string, number>, { data }: { readonly data: boolean }): string[] {
  const wanted: readonly (readonly [option: string, kernelName: string, value: number])[] = [
    ["core", "Max core file size", 0],
    ["nofile", "Max open files", limits.openFiles],
    ["fsize", "Max file size", limits.fileBytes],
    ["cpu", "Max cpu time", limits.cpuSeconds],
    ["memlock", "Max locked memory", 64 * 1024],
    ["msgqueue", "Max msgqueue size", 0],
    ["rtprio", "Max realtime priority", 0],
    ["nice", "Max nice priority", 0],
    ...(data ? [["data", "Max data size", limits.memoryBytes] as const] : []),
  ];
  // Only a process with CAP_SYS_RESOURCE may go above its own hard limit; staying below it is always tighter.
  return wanted.map(([option, kernelName, value]) => `--${option}=${Math.min(Math.ceil(value), hardLimits.get(kernelName) ?? Infinity)}`);
}

/** The hard limits of a process from the text of its /proc/<pid>/limits; unlimited ones are left out. */
export function parseHardLimits(text: string): ReadonlyMap<string, number> {
  return new Map(
    text.split("\n").flatMap((line): [string, number][] => {
      const match = /^(?<name>.+?)\s{2,}\S+\s+(?<hard>\d+)\b/.exec(line);
      return match?.groups ? [[match.groups["name"] ?? "", Number(match.groups["hard"])]] : [];
    }),
  );
}
