import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect as connectHttp2, constants, createSecureServer } from "node:http2";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Server, type TLSSocket, createServer } from "node:tls";
import { afterAll, beforeAll, expect, inject, onTestFinished, test } from "vitest";
import { openclaw } from "../control-plane/cli-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { startProduct } from "../product.ts";
import { freshDatabase } from "../storage/fresh-database.ts";

/** Temporal's real server behind TLS that asks for a client's certificate, and what it saw of the handshakes. */
let server: Server;
let port = 0;
const clients: string[] = [];
const names = new Set<string>();

const certificates = mkdtempSync(join(tmpdir(), "openclaw-tls-"));
const file = (name: string): string => join(certificates, name);
const openssl = (...words: string[]): void => void execFileSync("openssl", words, { cwd: certificates, stdio: "pipe" });
/** An EC key and a certificate of it, by the authority `ca` or by itself. */
function certify(name: string, ca?: string): void {
  const isAuthority = ca === undefined;
  writeFileSync(file(`${name}.ext`), `basicConstraints=CA:${isAuthority ? "TRUE" : "FALSE"}\nsubjectAltName=DNS:${name}\n`);
  openssl(
    "req",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-subj",
    `/CN=${name}`,
    "-keyout",
    `${name}.key`,
    "-out",
    `${name}.csr`,
  );
  const signer = isAuthority ? ["-signkey", `${name}.key`] : ["-CA", `${ca}.pem`, "-CAkey", `${ca}.key`, "-CAcreateserial"];
  openssl("x509", "-req", "-in", `${name}.csr`, "-days", "2", "-extfile", `${name}.ext`, ...signer, "-out", `${name}.pem`);
}

beforeAll(async () => {
  certify("authority.test");
  certify("stranger.test");
  certify("temporal.test", "authority.test");
  certify("gateway.test", "authority.test");
  const [host = "", to = ""] = inject("temporalAddress").split(":");
  server = createServer(
    {
      key: readFileSync(file("temporal.test.key")),
      cert: readFileSync(file("temporal.test.pem")),
      ca: readFileSync(file("authority.test.pem")),
      requestCert: true,
      rejectUnauthorized: true,
      ALPNProtocols: ["h2"],
    },
    (socket: TLSSocket) => {
      clients.push(String(socket.getPeerCertificate().subject.CN));
      names.add(String(socket.servername));
      const behind = connect(Number(to), host);
      socket.pipe(behind).pipe(socket);
      for (const end of [socket, behind]) end.on("error", () => [socket, behind].forEach((each) => each.destroy()));
    },
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  port = (server.address() as AddressInfo).port;
});
afterAll(() => {
  server.close();
  rmSync(certificates, { recursive: true, force: true });
});

const configWith = (temporal: string): string => `
default_model: demo
providers: { demo: { kind: demo } }
models: { demo: { provider: demo, context_window: 1000, max_output_tokens: 100 } }
billing: { rate_card: { demo: { input: 1, output: 2 } } }
temporal: ${temporal}
`;
const mutual = (more = ""): string =>
  `{ address: "127.0.0.1:${port}", tls_server_name: temporal.test, tls_ca_file: ${file("authority.test.pem")}, tls_cert_file: ${file("gateway.test.pem")}, tls_key_file: ${file("gateway.test.key")}${more} }`;
/** What a start says that must not succeed. */
const refusalOf = async (config: string, env: Record<string, string> = {}): Promise<string> =>
  await startProduct({ config, env }).then(
    async (product) => {
      await product.stop();
      throw new Error("the product started");
    },
    (error: Error) => error.message,
  );

test("the whole product speaks to a Temporal that wants TLS and a client's certificate, and so does doctor", async () => {
  const env = { DATABASE_URL: await freshDatabase(), TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")) };

  const product = await startProduct({ config: configWith(mutual()), env });
  expect(await product.createTenant("acme-tls")).toMatch(/^tk_acme-tls_/);
  const { PATH = "", HOME = "" } = process.env;
  const { stdout } = await openclaw(["doctor", "--json"], { PATH, HOME, OPENCLAW_HOME: product.home, ...env });
  await product.stop();

  expect(new Set(clients)).toEqual(new Set(["gateway.test"]));
  expect([...names]).toEqual(["temporal.test"]);
  const { findings } = JSON.parse(stdout) as { findings: { check: string }[] };
  expect(findings.find(({ check }) => check === "temporal")).toMatchObject({ state: "ok" });
}, 120_000);

test("a server of another authority is not spoken to, and what cannot be used is named in one line", async () => {
  const env = { DATABASE_URL: await freshDatabase(), TEMPORAL_NAMESPACE: "default" };
  const before = clients.length;
  const refused = {
    "another authority": configWith(mutual().replace("authority.test.pem", "stranger.test.pem")),
    "no certificate": configWith(
      `{ address: "127.0.0.1:${port}", tls_server_name: temporal.test, tls_ca_file: ${file("authority.test.pem")} }`,
    ),
    "in the clear": configWith(`{ address: "127.0.0.1:${port}" }`),
    "no file": configWith(mutual().replace("gateway.test.pem", "nobody.pem")),
    "not PEM": configWith(mutual().replace("gateway.test.pem", "gateway.test.ext")),
  };

  const says: Record<string, string> = {};
  for (const [name, config] of Object.entries(refused)) says[name] = await refusalOf(config, env);

  for (const name of ["another authority", "no certificate", "in the clear"])
    expect(says[name]).toMatch(new RegExp(`ended with 1: openclaw: no Temporal server answers at 127.0.0.1:${port} .*\\n$`));
  expect(says["no file"]).toMatch(/ended with 1: openclaw: temporal\.tls_cert_file: .*nobody\.pem cannot be read \(ENOENT\)\n$/);
  expect(says["not PEM"]).toMatch(/ended with 1: openclaw: temporal\.tls_cert_file: .*gateway\.test\.ext is not PEM\n$/);
  expect(clients.length).toBe(before);
}, 180_000);

/**
 * Temporal behind what Temporal Cloud is to its callers: TLS that asks for nobody's certificate, and an API key with every call. Others
 * are told UNAUTHENTICATED.
 */
async function startKeyedProxy(apiKey: string) {
  const to = connectHttp2(`http://${inject("temporalAddress")}`);
  const seen = new Set<string | undefined>();
  const proxy = createSecureServer({ key: readFileSync(file("temporal.test.key")), cert: readFileSync(file("temporal.test.pem")) });
  proxy.on("stream", (stream, headers) => {
    const { authorization } = headers;
    seen.add(authorization);
    stream.on("error", () => {});
    if (authorization !== `Bearer ${apiKey}`) {
      stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": "16" }, { endStream: true });
      return;
    }
    const behind = to.request({ ...headers, ":authority": inject("temporalAddress"), ":scheme": "http" });
    behind.on("error", () => stream.close());
    stream.on("close", () => behind.close());
    stream.pipe(behind);
    let trailers: Record<string, string | string[] | undefined> = {};
    behind.on("trailers", (sent) => (trailers = sent));
    behind.on("response", ({ ":status": status, ...answered }, flags) => {
      if ((flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0) return stream.respond({ ":status": status, ...answered }, { endStream: true });
      stream.respond({ ":status": status, ...answered }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers(trailers));
      behind.pipe(stream);
    });
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  onTestFinished(() => {
    to.destroy();
    proxy.close();
  });
  return { port: (proxy.address() as AddressInfo).port, seen };
}

test("the whole product, and doctor, show Temporal an API key, which nobody else sees", async () => {
  const secret = "temporal-cloud-secret";
  const proxy = await startKeyedProxy(secret);
  const env = {
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    CLOUD_KEY: secret,
  };
  const config = configWith(
    `{ address: "127.0.0.1:${proxy.port}", tls_server_name: temporal.test, tls_ca_file: ${file("authority.test.pem")}, api_key_env: CLOUD_KEY }`,
  );

  const product = await startProduct({ config, env });
  expect(await product.createTenant("acme-key")).toMatch(/^tk_acme-key_/);
  const { PATH = "", HOME = "" } = process.env;
  const { stdout } = await openclaw(["doctor", "--json"], { PATH, HOME, OPENCLAW_HOME: product.home, ...env });
  const output = product.output();
  await product.stop();

  expect([...proxy.seen]).toEqual([`Bearer ${secret}`]);
  const { findings } = JSON.parse(stdout) as { findings: { check: string }[] };
  expect(findings.find(({ check }) => check === "temporal")).toMatchObject({ state: "ok" });
  expect(output + stdout).not.toContain(secret);
  expect(await refusalOf(config, { ...env, CLOUD_KEY: "another" })).toMatch(/openclaw: no Temporal server answers at/);
  expect(await refusalOf(config, { ...env, CLOUD_KEY: "" })).toContain("openclaw: temporal.api_key_env: CLOUD_KEY is not set");
}, 180_000);

test("TLS keys that cannot have a meaning are refused with their line", async () => {
  expect(await refusalOf(configWith("{ tls: true }"))).toContain("openclaw: temporal.tls is for a Temporal server of your own");
  expect(await refusalOf(configWith("{ tls_cert_file: x.pem }"))).toMatch(/line 6.*temporal\.tls_cert_file.*needs tls_key_file/);
  expect(await refusalOf(configWith("{ tls: false, tls_ca_file: x.pem }"))).toMatch(
    /line 6.*tls_ca_file.*is of no use while temporal\.tls is false/,
  );
  expect(await refusalOf(configWith("{ tls: false, api_key_env: KEY }"))).toMatch(
    /line 6.*api_key_env.*is of no use while temporal\.tls is false/,
  );
});
