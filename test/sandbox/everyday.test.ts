import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { resolveSandboxPolicy } from "../../control-plane/sandbox-policy.ts";
import { limitsOfPolicy } from "../../sandbox/policy-run.ts";
import { missing, type Stage, setStage, text, variants } from "./sandbox-stage.ts";

/** What a configuration without a word about sandboxes gives. */
const limits = limitsOfPolicy(resolveSandboxPolicy({ admin: {}, overlay: undefined }));
const isFull = process.env["OPENCLAW_TEST_FULL"] !== undefined;
const never = new AbortController().signal;

/** What people run, by the program that it needs. */
const everyday: readonly { readonly name: string; readonly needs: string; readonly script: string; readonly says: string }[] = [
  {
    name: "bash: pipes, jobs, here-documents, process substitution, a trap",
    needs: "/bin/bash",
    script: `trap 'echo bye' EXIT; seq 1000 | sort -rn | head -1; cat <<< here; diff <(echo a) <(echo a) && echo same; sleep 0.1 & wait $!; echo done`,
    says: "1000\nhere\nsame\ndone\nbye\n",
  },
  {
    name: "python3: threads, a pool of processes, SQLite in the work directory, a temporary file",
    needs: "/usr/bin/python3",
    script: `cat > job.py <<'E'
import concurrent.futures as f, multiprocessing, sqlite3, tempfile, json
def square(n): return n * n
if __name__ == "__main__":
    with f.ThreadPoolExecutor(8) as pool: print(sum(pool.map(square, range(100))))
    with multiprocessing.Pool(3) as pool: print(sum(pool.map(square, range(100))))
    base = sqlite3.connect("kept.db"); base.execute("create table t (n)"); base.executemany("insert into t values (?)", [(n,) for n in range(1000)]); base.commit()
    print(base.execute("select sum(n) from t").fetchone()[0])
    with tempfile.TemporaryFile() as kept: kept.write(b"x" * 1000000); print(kept.tell())
    print(json.dumps({"a": 1}))
E
/usr/bin/python3 job.py`,
    says: '328350\n328350\n499500\n1000000\n{"a": 1}\n',
  },
  {
    name: "node: workers, a child process, files, timers",
    needs: "/usr/bin/node",
    script: `cat > job.cjs <<'E'
const { Worker } = require("node:worker_threads"), { execFileSync } = require("node:child_process"), fs = require("node:fs");
fs.writeFileSync("made.json", JSON.stringify({ n: 1 }));
console.log(JSON.parse(fs.readFileSync("made.json", "utf8")).n, execFileSync("echo", ["child"]).toString().trim());
new Worker("require('node:worker_threads').parentPort.postMessage(41 + 1)", { eval: true }).on("message", (n) => setTimeout(() => console.log(n), 10));
E
/usr/bin/node job.cjs`,
    says: "1 child\n42\n",
  },
  {
    name: "git: a repository, a branch, a merge, a clone of it",
    needs: "/usr/bin/git",
    script: `exec 2>/dev/null; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b.c GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b.c
git init -q -b main r && cd r && echo one > f && git add f && git commit -qm one && git switch -qc other && echo two >> f && git commit -qam two &&
git switch -q main && echo three > g && git add g && git commit -qm three && git merge -q other -m four && cd .. && git clone -q r s && git -C s log --format=%s | sort`,
    says: "four\none\nthree\ntwo\n",
  },
];

describe.skipIf(missing !== undefined).each(variants)("what people run, $name", (variant) => {
  let stage: Stage;
  beforeAll(async () => (stage = await setStage(variant)));
  afterAll(() => stage.tearDown());

  const run = async (script: string) => {
    const result = await stage.driver.run({ ...stage.acme, argv: ["/bin/bash", "-c", script], stdin: "", limits }, never);
    return { ...result, stdout: text(result.stdout), stderr: text(result.stderr) };
  };

  for (const { name, needs, script, says } of everyday) {
    const title = existsSync(needs) ? name : `${name} (skipped: there is no ${needs} here)`;
    test.skipIf(!existsSync(needs))(title, async () => {
      expect(await run(script)).toMatchObject({ reason: "ok", exitCode: 0, stdout: says, stderr: "" });
    });
  }

  const seconds = isFull ? 30 : 2;
  test(`a computation of ${seconds} seconds${isFull ? "" : " (30 in npm run test:full)"} comes to its end`, async () => {
    const compute = `my ($end, $n) = (time + ${seconds} + 1, 0); $n++ while time < $end; print "counted\\n"`;
    const result = await run(`perl -e '${compute}'`);

    expect(result).toMatchObject({ reason: "ok", exitCode: 0, stdout: "counted\n", stderr: "" });
  });
});

test("the built-in limits leave a 30-second computation room on a machine of any size", () => {
  expect(limits.wallMs).toBeGreaterThanOrEqual(2 * 30_000);
  expect(limits.cpuSeconds).toBeGreaterThanOrEqual(2 * 30 * Math.min(1, availableParallelism()));
});
