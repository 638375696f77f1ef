import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, constants, copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { EgressEvent } from "../../domain/egress-event.ts";
import { createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import { EgressDoors } from "../../sandbox/egress-door.ts";
import type { EgressGrant } from "../../sandbox/egress-grant.ts";
import { ownerName } from "../../sandbox/run-owner.ts";
import type { SandboxJob, SandboxResult } from "../../sandbox/sandbox-driver.ts";
import { builtInProfile } from "../../sandbox/seccomp-profile.ts";
import { warmDefaults } from "../../sandbox/warm-slots.ts";
import { testOutside } from "./egress-outside.ts";
import { certificate, wideLimits } from "./egress-stage.ts";
import { isRoot, limits, missing, processesWith, setStage, type Stage, startDriverProcess, text, uids, variants } from "./sandbox-stage.ts";

const MiB = 1024 * 1024;
const roomy = {
  ...limits,
  wallMs: 120_000,
  cpuSeconds: 120,
  memoryBytes: 1024 * MiB,
  fileBytes: 256 * MiB,
  openFiles: 256,
  tmpBytes: 64 * MiB,
};
const names = { "web.test": ["127.0.0.1"], "evil.test": ["127.0.0.1"] };
const never = new AbortController().signal;

/** What people fetch: a page, a package index of one package, a git repository. */
const world = {
  directory: "",
  plain: 0,
  tls: 0,
  close: async (): Promise<void> => undefined,
};

beforeAll(async () => {
  world.directory = mkdtempSync(join(tmpdir(), "openclaw-egress-world-"));
  makeRepository(world.directory);
  makeWheel(world.directory);
  const serve = (request: IncomingMessage, response: ServerResponse): void => void answer(world.directory, request, response);
  const servers: Server[] = [createServer(serve), createTlsServer(certificate(), serve) as unknown as Server];
  for (const server of servers) await once(server.listen(0, "127.0.0.1"), "listening");
  [world.plain, world.tls] = servers.map((server) => (server.address() as AddressInfo).port) as [number, number];
  world.close = async () => {
    for (const server of servers) {
      server.closeAllConnections();
      server.close();
    }
    rmSync(world.directory, { recursive: true, force: true });
  };
});
afterAll(() => world.close());

function makeRepository(directory: string): void {
  if (!existsSync("/usr/bin/git")) return;
  const git = (...words: string[]): void =>
    void execFileSync("git", ["-c", "user.name=a", "-c", "user.email=a@b.test", ...words], { cwd: join(directory), stdio: "pipe" });
  git("init", "-q", "-b", "main", "work");
  writeFileSync(join(directory, "work/README"), "cloned\n");
  git("-C", "work", "add", "README");
  git("-C", "work", "commit", "-q", "-m", "first");
  git("clone", "-q", "--bare", "work", "repo.git");
}

/** A package of one module, with the little that pip wants. */
function makeWheel(directory: string): void {
  if (!existsSync("/usr/bin/python3")) return;
  const script = `
import zipfile
info = "greeting-1.0.dist-info/"
with zipfile.ZipFile("greeting-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("greeting.py", "words = 'installed'\\n")
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(info + "RECORD", "greeting.py,,\\n" + info + "METADATA,,\\n" + info + "WHEEL,,\\n" + info + "RECORD,,\\n")
`;
  execFileSync("/usr/bin/python3", ["-c", script], { cwd: directory });
}

async function answer(directory: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname, search } = new URL(request.url ?? "/", "http://web.test");
  if (pathname.startsWith("/repo.git/")) return await answerGit(directory, pathname, search.slice(1), request, response);
  if (pathname === "/simple/greeting/")
    return void response
      .setHeader("content-type", "text/html")
      .end('<a href="/greeting-1.0-py3-none-any.whl">greeting-1.0-py3-none-any.whl</a>');
  if (pathname.endsWith(".whl")) return void response.end(readFileSync(join(directory, "greeting-1.0-py3-none-any.whl")));
  response.end(`page of ${request.headers.host}\n`);
}

/** git's smart protocol, by git's own CGI program. */
async function answerGit(
  directory: string,
  path: string,
  query: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const child = spawn("git", ["http-backend"], {
    env: {
      PATH: "/usr/bin:/bin",
      GIT_PROJECT_ROOT: directory,
      GIT_HTTP_EXPORT_ALL: "1",
      // The test's user may be another one than the directory's.
      GIT_CONFIG_COUNT: "1",
      GIT_CONFIG_KEY_0: "safe.directory",
      GIT_CONFIG_VALUE_0: "*",
      REQUEST_METHOD: request.method ?? "GET",
      PATH_INFO: path,
      QUERY_STRING: query,
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
      GIT_PROTOCOL: String(request.headers["git-protocol"] ?? ""),
    },
    stdio: ["pipe", "pipe", "inherit"],
  });
  request.pipe(child.stdin);
  const chunks: Buffer[] = [];
  for await (const chunk of child.stdout) chunks.push(chunk as Buffer);
  const said = Buffer.concat(chunks);
  const end = said.indexOf("\r\n\r\n");
  for (const line of said.subarray(0, end).toString("latin1").split("\r\n")) {
    const [name = "", value = ""] = line.split(": ");
    if (name === "Status") response.statusCode = Number.parseInt(value, 10);
    else response.setHeader(name, value);
  }
  response.end(said.subarray(end + 4));
}

const grant = (more: Partial<EgressGrant> = {}): EgressGrant => ({
  rules: [`web.test:${world.plain}`, `web.test:${world.tls}`],
  allowPrivate: [],
  limits: wideLimits,
  ...more,
});

const socketDirectories = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith(`${ownerName}-egress-`));
const leftSockets = (): string[] => socketDirectories().flatMap((name) => readdirSync(join(tmpdir(), name)));

describe.skipIf(missing !== undefined).each(variants)("through the allow-list, $name", (variant) => {
  let stage: Stage;
  let events: EgressEvent[] = [];
  beforeAll(async () => {
    const options = { ...variant.options, egress: { outside: testOutside(names) }, ...(variant.asUser ? { egressNames: names } : {}) };
    stage = await setStage({ ...variant, options });
    writeFileSync(join(stage.acme.workDirectory, "ca.pem"), certificate().cert);
  });
  afterAll(async () => {
    await stage?.tearDown();
  });

  const run = async (command: string, more: Partial<SandboxJob> = {}): Promise<{ out: string; err: string } & SandboxResult> => {
    events = [];
    const job = { ...stage.acme, argv: ["/bin/bash", "-c", command], stdin: "", limits: roomy, egress: grant(), ...more };
    const result = await stage.driver.run(variant.asUser ? job : { ...job, onEgress: (event) => void events.push(event) }, never);
    return { ...result, out: text(result.stdout), err: text(result.stderr) };
  };

  test("curl gets what is allowed, over HTTP and TLS, and is told why it does not get the rest", async () => {
    const { out, err, reason } = await run(`
      curl -sS http://web.test:${world.plain}/
      curl -sS --cacert ca.pem https://web.test:${world.tls}/
      curl -sS http://evil.test:${world.plain}/
      curl -sS https://evil.test:${world.tls}/ || echo refused
      curl -sS -o /dev/null -w '%{http_code}\\n' http://169.254.169.254/latest/meta-data
      curl -sS --noproxy '*' http://127.0.0.1:${world.plain}/ || echo no way around
      curl -sS --noproxy '*' --max-time 5 http://web.test:${world.plain}/ || echo no names`);

    expect(reason).toBe("ok");
    expect(out.split("\n")).toEqual([
      `page of web.test:${world.plain}`,
      `page of web.test:${world.tls}`,
      `openclaw: evil.test:${world.plain} is not on the network allow-list of this sandbox`,
      "refused",
      "403",
      "no way around",
      "no names",
      "",
    ]);
    expect(err).toContain("response 403");
    if (!variant.asUser)
      expect(events.flatMap((event) => (event.kind === "decided" ? [event.verdict] : []))).toEqual([
        "allowed",
        "allowed",
        "not_listed",
        "not_listed",
        "not_listed",
      ]);
  });

  test.runIf(existsSync("/usr/lib/git-core/git-remote-https"))("git clones and fetches", async () => {
    const { out, err } = await run(`
      export GIT_SSL_CAINFO=/work/ca.pem
      git clone -q https://web.test:${world.tls}/repo.git one && cat one/README && git -C one fetch -q && echo fetched
      git clone -q http://web.test:${world.plain}/repo.git two && cat two/README
      git clone -q https://evil.test:${world.tls}/repo.git three || echo refused`);

    expect(out, err).toBe("cloned\nfetched\ncloned\nrefused\n");
    expect(err).toContain("403");
  });

  test.runIf(existsSync("/usr/lib/python3/dist-packages/pip"))("pip installs, python imports", async () => {
    const { out, err } = await run(`
      pip3 install -q --cert ca.pem --index-url https://web.test:${world.tls}/simple greeting && python3 -c 'import greeting; print(greeting.words)'
      python3 -c 'import urllib.request as u; print(u.urlopen("http://web.test:${world.plain}/").read().decode().strip())'
      pip3 install --retries 0 --index-url https://evil.test:${world.tls}/simple other || echo refused`);

    expect(out, err).toContain(`installed\npage of web.test:${world.plain}\n`);
    expect(out).toMatch(/refused\n$/);
    if (!variant.asUser)
      expect(events).toContainEqual(expect.objectContaining({ verdict: "not_listed", target: `evil.test:${world.tls}` }));
  });

  test("Node's own fetch uses the way out", async () => {
    const node = join(stage.acme.workDirectory, "node");
    copyFileSync(process.execPath, node, constants.COPYFILE_FICLONE);
    if (isRoot) chownSync(node, stage.acme.uid ?? uids.user, stage.acme.uid ?? uids.user);
    const script = `for (const url of ["http://web.test:${world.plain}", "https://web.test:${world.tls}", "https://evil.test:${world.tls}"])
      console.log(await fetch(url).then((answer) => answer.text(), (error) => "refused " + error.cause?.statusCode + error.cause));`;

    const { out, err } = await run(`NODE_EXTRA_CA_CERTS=/work/ca.pem ./node --input-type=module -e '${script}'; rm node`);

    expect(out, err).toMatch(new RegExp(`^page of web.test:${world.plain}\n\npage of web.test:${world.tls}\n\nrefused .*`));
  });

  test("the relay is nobody's child, keeps no call from ending and outlives none", async () => {
    const marker = `openclaw-relay-${process.pid}`;
    const { out, reason, wallMs } = await run(`exec -a ${marker} perl -e 'print wait() == -1 ? "no children\\n" : "a child\\n"'`);

    expect([reason, out]).toEqual(["ok", "no children\n"]);
    expect(wallMs).toBeLessThan(roomy.wallMs);
    expect(await processesWith(marker)).toEqual([]);
    expect(leftSockets()).toEqual([]);
  });

  test("without a grant there is nothing of it inside", async () => {
    const { egress: _egress, ...alone } = { ...stage.acme, egress: undefined };
    const result = await stage.driver.run(
      { ...alone, argv: ["/bin/bash", "-c", "env | grep -i -c proxy; ls /run 2>&1; curl -sS http://web.test/"], stdin: "", limits: roomy },
      never,
    );

    expect(text(result.stdout)).toMatch(/^0\nls: cannot access '\/run'/);
    expect(result.exitCode).not.toBe(0);
  });

  test("the limits of processes and memory hold for the relay too, and a call that floods it ends on time", async () => {
    const { reason } = await run(
      `perl -e 'use IO::Socket::INET; my @held; while (1) { push @held, IO::Socket::INET->new(PeerAddr => "127.0.0.1:3128") // (select(undef, undef, undef, 0.05) x 0); last if @held > 180 } sleep 60'`,
      { limits: { ...roomy, wallMs: 3_000 } },
    );

    expect(["wall", "memory"]).toContain(reason);
    expect((await run(`curl -sS http://web.test:${world.plain}/`)).out).toBe(`page of web.test:${world.plain}\n`);
  });

  test("what one call may move is its own: the next one begins anew", async () => {
    const small = grant({ limits: { ...wideLimits, requests: 1 } });
    const twice = `for i in 1 2; do curl -s -o /dev/null -w '%{http_code} ' http://web.test:${world.plain}/; done`;

    expect((await run(twice, { egress: small })).out).toBe("200 429 ");
    expect((await run(twice, { egress: small })).out).toBe("200 429 ");
  });
});

describe.skipIf(missing !== undefined)("the way out is one sandbox's own", () => {
  test.runIf(isRoot)(
    "its socket is the tenant's uid's alone, has no name once the sandbox stands, and another tenant's sandbox does not see it",
    async () => {
      const said: Uint8Array[] = [];
      const stop = new AbortController();
      const stage = await setStage({ name: "", options: { egress: { outside: testOutside(names) } }, asUser: false });
      const held = stage.driver.run(
        {
          ...stage.acme,
          argv: ["/bin/bash", "-c", "echo up; ls -ln /run/openclaw/egress.sock | cut -d' ' -f1,3; sleep 600"],
          stdin: "",
          limits: { ...roomy, wallMs: 600_000 },
          egress: grant(),
          onOutput: (_stream, chunk) => said.push(chunk),
        },
        stop.signal,
      );
      await expect.poll(() => text(Buffer.concat(said)), { timeout: 60_000 }).toBe("up\nsrw------- 1000\n");

      expect(leftSockets()).toEqual([]);
      const [directory = ""] = socketDirectories();
      const looked = await stage.driver.run(
        {
          ...stage.globex,
          argv: [
            "/bin/bash",
            "-c",
            `ls -A /tmp /run 2>&1; ls ${tmpdir()}/${directory} 2>&1; perl -e 'use IO::Socket::UNIX; print IO::Socket::UNIX->new(Peer => "/run/openclaw/egress.sock") ? "in" : "out"'`,
          ],
          stdin: "",
          limits: roomy,
        },
        never,
      );
      expect(text(looked.stdout)).toMatch(/out$/);
      expect(text(looked.stdout)).not.toMatch(/\.sock\n/);

      stop.abort();
      expect((await held).reason).toBe("cancelled");
      await stage.tearDown();
      expect(socketDirectories()).toEqual([]);
    },
  );
  test.runIf(isRoot)("a socket that waits to be mounted lets no other uid in", async () => {
    const doors = new EgressDoors({ outside: testOutside(names) });
    const door = await doors.open(grant(), uids.acme);
    const reach = `use IO::Socket::UNIX; print IO::Socket::UNIX->new(Peer => $ARGV[0]) ? "in" : "out: $!"`;
    const as = (uid: number): string =>
      execFileSync("setpriv", ["--reuid", String(uid), "--regid", String(uid), "--clear-groups", "perl", "-e", reach, door.socketPath], {
        encoding: "utf8",
      });

    expect(as(uids.acme)).toBe("in");
    expect(as(uids.globex)).toMatch(/^out: Permission denied/);

    await door.close();
    doors.dispose();
    expect(existsSync(door.socketPath)).toBe(false);
  });

  test("a sandbox that was ready serves one call with its own way out, and none with another grant", async () => {
    const stage = await setStage({
      name: "",
      options: { warm: { ...warmDefaults, perKey: 1 }, egress: { outside: testOutside(names) } },
      asUser: false,
    });
    const job = (command: string, egress: EgressGrant, events: EgressEvent[]): SandboxJob => ({
      ...stage.acme,
      argv: ["/bin/bash", "-c", command],
      stdin: "",
      limits: roomy,
      egress,
      onEgress: (event) => void events.push(event),
    });
    const fetchPage = `curl -s -o /dev/null -w '%{http_code}' http://web.test:${world.plain}/`;
    const one = grant({ limits: { ...wideLimits, requests: 1 } });

    for (let call = 0; call < 3; call += 1) {
      const events: EgressEvent[] = [];
      // From the second call on it is a slot that was made while the first one ran.
      const { stdout } = await stage.driver.run(job(fetchPage, one, events), never);
      expect(text(stdout)).toBe("200");
      expect(events.map(({ kind }) => kind)).toEqual(["decided", "ended"]);
      await expect.poll(async () => (await processesWith(`\0${ownerName}-`)).length, { timeout: 60_000 }).toBeGreaterThanOrEqual(3);
    }
    const other = await stage.driver.run(job(fetchPage, { ...one, rules: ["other.test:443"] }, []), never);
    expect(text(other.stdout)).toBe("403");

    await stage.tearDown();
    expect(socketDirectories()).toEqual([]);
  });

  test("a gateway that is killed leaves no program running, and its socket's directory goes with the next start", async () => {
    const stage = await setStage({ name: "", options: {}, asUser: false });
    const driver = startDriverProcess({ egressNames: names });
    const gateway = driver.process as ChildProcess;
    const marker = `killed-${process.pid}`;
    void driver
      .run(
        {
          ...stage.acme,
          argv: ["/bin/bash", "-c", `exec -a ${marker} sleep 600`],
          stdin: "",
          limits: { ...roomy, wallMs: 600_000 },
          egress: grant(),
        },
        never,
      )
      .catch(() => undefined);
    await expect.poll(async () => await processesWith(marker), { timeout: 60_000 }).not.toEqual([]);
    const ofGateway = (): string[] => readdirSync(tmpdir()).filter((name) => name.includes(`-${gateway.pid}-egress-`));
    expect(ofGateway()).toHaveLength(1);

    gateway.kill("SIGKILL");
    await once(gateway, "exit");
    await expect.poll(async () => await processesWith(marker), { timeout: 60_000 }).toEqual([]);
    const next = createBwrapDriver();
    expect(next.enforcement()).toBeDefined();

    expect(ofGateway()).toEqual([]);
    await next.dispose();
    await stage.tearDown();
  });

  test("a filter without sockets starts no relay, and the call says so instead of running without", async () => {
    const seccomp = builtInProfile("strict") ?? expect.fail();
    const stage = await setStage({ name: "", options: { egress: { outside: testOutside(names) } }, asUser: false });

    const result = await stage.driver.run(
      { ...stage.acme, argv: ["/bin/true"], stdin: "", limits: roomy, egress: grant(), seccomp },
      never,
    );

    expect(result.reason).toBe("failed_to_start");
    expect(text(result.stderr)).toContain("the network relay has no socket");
    await stage.tearDown();
  });
});
