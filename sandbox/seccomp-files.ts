import { type ConstantFile, createConstantFile } from "./nameless-file.ts";
import { type Machine, type SeccompOptions, seccompFilterBytes } from "./seccomp-filter.ts";
import { defaultSeccompProfile, type SeccompProfile } from "./seccomp-profile.ts";

/** The filters of a host, each assembled when a run first asks for it; there are as many as the administrator's profiles make. */
export type SeccompFiles = {
  /** A descriptor at the beginning of the profile's filter; the caller closes it. */
  open(profile?: SeccompProfile): number;
  dispose(): void;
};

export function createSeccompFiles(machine: Machine, options: SeccompOptions): SeccompFiles {
  const files = new Map<string, ConstantFile>();
  return {
    open(profile = defaultSeccompProfile) {
      const file = files.get(profile.id) ?? createConstantFile(seccompFilterBytes(machine, profile, options));
      files.set(profile.id, file);
      return file.open();
    },
    dispose() {
      for (const file of files.values()) file.dispose();
      files.clear();
    },
  };
}
