import { createServer } from "node:net";

/** The first of `preferred` that can be bound on loopback and is not in `except`, else one that the system gives. */
export async function choosePort(preferred: readonly number[], except: readonly number[] = []): Promise<number> {
  for (const port of preferred) {
    if (!except.includes(port) && (await tryBind(port)) !== undefined) return port;
  }
  for (;;) {
    const port = await tryBind(0);
    if (port === undefined) throw new Error("No port can be bound on 127.0.0.1.");
    if (!except.includes(port)) return port;
  }
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
