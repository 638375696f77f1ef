import { readFileSync, readdirSync } from "node:fs";

/** One process of Linux as /proc tells it. */
export type ProcessFacts = {
  readonly pid: number;
  readonly parentPid: number;
  readonly name: string;
  /** User and system time of the process and of its children that have ended. */
  readonly cpuMs: number;
  readonly rssMb: number;
};

const tickMs = 10; // USER_HZ is 100 on every Linux that Node runs on
const pageMb = 4096 / 1024 / 1024;

/** Name and numbers of a `stat` file; undefined when its process or thread has gone. The name may hold blanks and brackets. */
function readStat(path: string): { name: string; fields: readonly string[] } | undefined {
  try {
    const text = readFileSync(path, "utf8");
    const end = text.lastIndexOf(")");
    return { name: text.slice(text.indexOf("(") + 1, end), fields: text.slice(end + 2).split(" ") };
  } catch {
    return undefined;
  }
}

const sum = (numbers: readonly (string | undefined)[]): number => numbers.reduce((total, number) => total + Number(number ?? 0), 0);

function allProcesses(): readonly ProcessFacts[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      const stat = readStat(`/proc/${entry}/stat`);
      if (stat === undefined) return [];
      const { name, fields } = stat; // fields[0] is the third field of proc(5)
      return [
        {
          pid: Number(entry),
          parentPid: Number(fields[1]),
          name,
          cpuMs: sum(fields.slice(11, 15)) * tickMs,
          rssMb: Number(fields[21]) * pageMb,
        },
      ];
    });
}

/** A process and everything below it. */
export function processTree(rootPid: number): readonly ProcessFacts[] {
  const all = allProcesses();
  const tree = all.filter(({ pid }) => pid === rootPid);
  for (const { pid } of tree) tree.push(...all.filter(({ parentPid }) => parentPid === pid));
  return tree;
}

/** CPU time of a process's threads, summed by the threads' names. */
export function threadCpuMs(pid: number): Readonly<Record<string, number>> {
  const sums: Record<string, number> = {};
  let threads: readonly string[] = [];
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    return sums; // the process has gone
  }
  for (const thread of threads) {
    const stat = readStat(`/proc/${pid}/task/${thread}/stat`);
    if (stat === undefined) continue;
    const name = thread === String(pid) ? "main" : stat.name;
    sums[name] = (sums[name] ?? 0) + sum(stat.fields.slice(11, 13)) * tickMs;
  }
  return sums;
}

/** Memory of a process, with what it shares divided by the sharers; undefined where the kernel does not tell. */
export function pssMb(pid: number): number | undefined {
  try {
    const [, kilobytes] = /^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8")) ?? [];
    return kilobytes === undefined ? undefined : Number(kilobytes) / 1024;
  } catch {
    return undefined;
  }
}
