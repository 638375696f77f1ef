import { createServer, type Server } from "node:net";

/** A port of loopback that no other process of ours takes while its server is down. */
export type ClaimedPort = { readonly port: number; release(): void };

/**
 * The first of `preferred` that can be bound on loopback and that nobody has claimed, else one that the system gives. A server holds its
 * port only while it runs: in the seconds of a start or a restart another gateway's server could take it, and our clients would find
 * that one there, with workflows of the same names.
 */
export async function claimPort(preferred: readonly number[]): Promise<ClaimedPort> {
  for (const port of preferred) {
    const claimed = await tryClaim(port);
    if (claimed !== undefined) return claimed;
  }
  for (;;) {
    const port = await tryBind(0);
    if (port === undefined) throw new Error("No port can be bound on 127.0.0.1.");
    const claimed = await tryClaim(port);
    if (claimed !== undefined) return claimed;
  }
}

async function tryClaim(port: number): Promise<ClaimedPort | undefined> {
  const lock = await tryLock(port);
  if (lock === undefined) return undefined;
  const release = (): void => void lock.close();
  if ((await tryBind(port)) !== undefined) return { port, release };
  release();
  return undefined;
}

/** An abstract socket: the kernel lets one process have it and frees it with the process. Other systems have none, and there is no claim. */
async function tryLock(port: number): Promise<Server | undefined> {
  const server = createServer((socket) => void socket.destroy()).unref();
  if (process.platform !== "linux") return server;
  return await new Promise((resolve) => {
    server.once("error", () => resolve(undefined));
    server.listen(`\0openclaw-temporal-port-${port}`, () => resolve(server));
  });
}

function tryBind(port: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(undefined));
    server.listen({ host: "127.0.0.1", port, exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : undefined));
    });
  });
}
