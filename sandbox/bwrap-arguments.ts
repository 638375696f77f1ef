import { lstatSync, readlinkSync } from "node:fs";
import { dirname } from "node:path";
import { egressEnvironment, egressSocketInside, relayArguments } from "./egress-door.ts";
import type { EgressGrant } from "./egress-grant.ts";
import type { SandboxLimits } from "./sandbox-driver.ts";

/** The uid and gid that a program sees itself as. */
const INNER_ID = "1000";
const SHM_BYTES = 16 * 1024 * 1024;

/**
 * Descriptors beside stdin and the two that bubblewrap complains on. Its own processes keep none of them, so that what the program writes
 * ends with the program; `goScript` closes what it passes on (one digit: dash knows no others).
 */
export const runFds = { go: 3, args: 4, status: 5, out: 6, errors: 7, job: 8, seccomp: 9, passwd: 10, group: 11 } as const;
export const lastRunFd = Math.max(...Object.values(runFds));

/** What `goScript` says on the `go` descriptor. */
export const goWords = { ready: "ready\n", began: "began\n" } as const;

/**
 * The first thing to run inside. It takes the limits that hold each process by itself (soft and hard alike, so nothing can raise them),
 * says that it is there, and waits for our word, for three reasons. A sandbox may be started before its program is known. No program runs
 * before its cgroup holds it. And bubblewrap ties its two processes' lives to ours one after the other while it starts: a gateway killed
 * in between would leave a sandbox that nobody ends; then nothing but the end of the descriptor is read here.
 * The program's arguments are in the `job` file, complete before our word comes. It says when it goes over to the program, so that a
 * sandbox that died before is told from a program that failed.
 * A way out has its relay inside, which runs before the program does and is none of its children.
 * dash names the number of processes -p, bash -u; `-` leaves a limit as it is.
 */
export const goScript = `ulimit -c 0 && ulimit -l 64 && ulimit -n "$1" && ulimit -f "$2" && ulimit -t "$3" || exit 125
[ "$4" = - ] || ulimit -d "$4" || exit 125
[ "$5" = - ] || ulimit -u "$5" 2>/dev/null || ulimit -p "$5" || exit 125
[ "$6" = - ] || /usr/bin/perl -e "$6" "$7" "$8" "$9" "$0" || exit 125
echo ready >&${runFds.go} && read -r go <&${runFds.go} || exit 125
. /proc/self/fd/${runFds.job}
exec ${runFds.job}<&- >&${runFds.out} 2>&${runFds.errors} ${runFds.out}>&- ${runFds.errors}>&-
echo began >&${runFds.go}; exec ${runFds.go}<&-; exec "$@"`;

/**
 * The `job` file: `goScript` reads it as a shell, so each argument is quoted whole and nothing in it means anything.
 * A program without input has /dev/null as its stdin: some look what it is and would search an empty file.
 */
export const jobFile = (argv: readonly string[], { hasStdin }: { readonly hasStdin: boolean }): string =>
  `${hasStdin ? "" : "exec </dev/null\n"}set -- ${argv.map((argument) => `'${argument.replaceAll("'", "'\\''")}'`).join(" ")}\n`;

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
export function bwrapArguments(workDirectory: string, { tmpBytes }: Pick<SandboxLimits, "tmpBytes">, wayOut?: WayOut): string[] {
  const tmpfs = (bytes: number, path: string): string[] => ["--perms", "1777", "--size", String(bytes), "--tmpfs", path];
  const readOnly = (path: string): string[] => ["--ro-bind-try", path, path];
  return [
    ...["--unshare-all", "--unshare-user", "--disable-userns", "--uid", INNER_ID, "--gid", INNER_ID, "--hostname", "sandbox"],
    ...["--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"],
    ...Object.entries({ ...environment, ...(wayOut === undefined ? {} : egressEnvironment(wayOut.grant)) }).flatMap(([name, value]) => [
      "--setenv",
      name,
      value,
    ]),
    ...["--ro-bind", "/usr", "/usr", ...systemLinks()],
    ...["--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/etc/ssl"],
    ...[...readOnly("/etc/ld.so.cache"), ...readOnly("/etc/alternatives"), ...readOnly("/etc/ssl/certs")],
    ...["--perms", "0444", "--file", String(runFds.passwd), "/etc/passwd"],
    ...["--perms", "0444", "--file", String(runFds.group), "/etc/group"],
    ...(wayOut === undefined ? [] : ["--perms", "0755", "--dir", "/run", "--perms", "0755", "--dir", dirname(egressSocketInside)]),
    ...(wayOut === undefined ? [] : ["--ro-bind", wayOut.socketPath, egressSocketInside]),
    ...["--proc", "/proc", "--dev", "/dev", ...tmpfs(Math.min(SHM_BYTES, tmpBytes), "/dev/shm"), "--remount-ro", "/dev"],
    ...tmpfs(tmpBytes, "/tmp"),
    ...["--bind", workDirectory, "/work", "--chdir", "/work", "--remount-ro", "/"],
    ...["--seccomp", String(runFds.seccomp)],
  ];
}

/** What a sandbox may reach, and the socket on the host that leads there. */
export type WayOut = { readonly grant: EgressGrant; readonly socketPath: string };

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

/** The rest of `goScript`'s arguments. */
export const wayOutArguments = (grant: EgressGrant | undefined, limits: SandboxLimits): string[] =>
  grant === undefined ? ["-"] : relayArguments(grant, limits);

/**
 * The five limits of `goScript`, in the units of a POSIX shell: files, blocks of 512 bytes, seconds, KiB, processes.
 * @param alone true where no cgroup holds the memory and the number of processes of the whole run. Set inside, the number counts in the
 * sandbox's own user namespace (Linux 5.14), not over all that the uid runs on the host.
 */
export function limitArguments(
  limits: SandboxLimits,
  hardLimits: ReadonlyMap<string, number>,
  { alone }: { readonly alone: boolean },
): string[] {
  // Only a process with CAP_SYS_RESOURCE may go above its own hard limit; staying below it is always tighter.
  const within = (value: number, kernelName: string): number => Math.min(Math.ceil(value), hardLimits.get(kernelName) ?? Infinity);
  return [
    String(within(limits.openFiles, "Max open files")),
    String(Math.floor(within(limits.fileBytes, "Max file size") / 512)),
    String(within(limits.cpuSeconds, "Max cpu time")),
    alone ? String(Math.floor(within(limits.memoryBytes, "Max data size") / 1024)) : "-",
    alone ? String(within(limits.processes, "Max processes")) : "-",
  ];
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
