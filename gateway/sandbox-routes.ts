import { createHash } from "node:crypto";
import { PassThrough, Readable } from "node:stream";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Changes } from "../control-plane/changes.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import { canonicalJson } from "../domain/canonical-json.ts";
import { type SandboxPolicy, sandboxLimitNames } from "../domain/sandbox-policy.ts";
import type { TenantId } from "../domain/tenant.ts";
import { changeOptionsOf } from "./admin-change.ts";
import { tenantOfPath } from "./admin-path.ts";

export type SandboxAnswer = {
  readonly policy: SandboxPolicy;
  /** Why nothing runs under this policy on this host. */
  readonly refused: string | undefined;
};

/** How each limit is held, by its name: `group`, `per-process`, `per-uid`, `polled` or `none`. */
type Enforcement = Readonly<Record<string, string>>;

export type CommandEnd = {
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;
  readonly reason: string;
  /** Why the sandbox did not start. */
  readonly detail: string | undefined;
  readonly wallMs: number;
  readonly peakMemoryBytes: number | undefined;
  readonly cpuMs: number | undefined;
  readonly truncated: boolean;
  readonly enforcement: Enforcement;
};

export type SandboxCommand = {
  readonly argv: readonly string[];
  readonly stdin: Uint8Array;
  readonly onOutput: (stream: "stdout" | "stderr", chunk: Uint8Array) => void;
};

/** The tenants' sandboxes, as an administrator reaches them. */
export interface TenantSandboxes {
  explain(
    tenantId: TenantId,
    tool: string,
  ): Promise<SandboxAnswer & { readonly allowed: boolean; readonly installed: boolean; readonly enforcement: Enforcement | undefined }>;
  /** `run` is there unless the policy is refused; it ends the command when `signal` says so. */
  open(
    tenantId: TenantId,
    mode: string | undefined,
  ): Promise<SandboxAnswer & { readonly run: (command: SandboxCommand, signal: AbortSignal) => Promise<CommandEnd> }>;
  /** A file that the tenant's programs made, by its path in their work directory. @throws {PathRefused} for what is no plain file in it */
  openFile(tenantId: TenantId, path: string): Promise<CopiedFile | undefined>;
}

export type CopiedFile = {
  readonly sizeBytes: number;
  /** All of it, and closes it. */
  read(): AsyncIterable<Uint8Array>;
  /** Closes what was never read; safe to repeat. */
  close(): Promise<void>;
};

export type SandboxDeps = {
  readonly tenants: Pick<Tenants, "get">;
  readonly changes: Pick<Changes, "make">;
  readonly sandboxes: TenantSandboxes;
};

const modeName = z.string().min(1).max(64);
const maxArgumentBytes = 96 * 1_024;
const argument = z
  .string()
  .refine((text) => !text.includes("\0"), "an argument must not hold a NUL character")
  .refine((text) => Buffer.byteLength(text) <= maxArgumentBytes, `an argument has at most ${maxArgumentBytes} bytes`);
const execBody = z.strictObject({
  command: z.array(argument).min(1, "command is a program and its arguments").max(1_000),
  mode: modeName.optional(),
  /** base64 */
  stdin: z.base64("stdin is base64").optional(),
});
const explainQuery = z.strictObject({
  tool: z.string().regex(/^[A-Za-z][A-Za-z0-9_.-]{0,63}$/, "tool is the name of a tool"),
});

const copyQuery = z.strictObject({ path: z.string({ error: "path is the file's path below /work" }) });
/** What comes out at once; more is no artefact but a disk. */
const maxCopyBytes = 1_024 * 1_024 * 1_024;

/** Together less than the kernel's ARG_MAX of 2 MiB, of which each string also takes a pointer. */
const maxCommandBytes = 1_024 * 1_024;

/** An administrator's look into a tenant's sandbox: what would apply, and one command in it. */
export const createSandboxRoutes =
  ({ tenants, changes, sandboxes }: SandboxDeps): FastifyPluginAsync =>
  async (app) => {
    const tenantIdOf = async (request: FastifyRequest): Promise<TenantId> => (await tenants.get(tenantOfPath(request))).id;

    app.get(
      "/v1/tenants/:tenant/sandbox/explain",
      { config: { access: "admin:read", describes: { summary: "What would apply to a tool's run, and why", query: explainQuery } } },
      async (request) => {
        const { tool } = explainQuery.parse(request.query);
        const tenantId = await tenantIdOf(request);
        const { allowed, installed, enforcement, ...answer } = await sandboxes.explain(tenantId, tool);
        return { tenant: tenantId, tool, installed, allowed, ...explanationOf(answer), enforcement: enforcement ?? null };
      },
    );

    app.post(
      "/v1/tenants/:tenant/sandbox/exec",
      {
        config: {
          access: "admin:all",
          describes: { summary: "Runs one command in the tenant's sandbox; stdout, stderr and its end as lines of JSON", body: execBody },
        },
      },
      async (request, reply) => {
        const { command, mode, stdin } = execBody.parse(request.body);
        if (command.reduce((sum, word) => sum + Buffer.byteLength(word) + 9, 0) > maxCommandBytes)
          throw new AppError("request_too_large", {
            client: { message: "The command has more than 1 MiB of arguments.", param: "command" },
          });
        const options = changeOptionsOf(request);
        if (options.idempotency !== undefined) {
          throw new AppError("invalid_request", {
            client: { message: "A command runs each time that it is sent: it takes no Idempotency-Key.", param: "Idempotency-Key" },
          });
        }
        const tenantId = await tenantIdOf(request);
        const { policy, refused, run } = await sandboxes.open(tenantId, mode);
        if (refused !== undefined) {
          const client = {
            message: `Nothing was run: ${refused}.`,
            ...(policy.fault === undefined || mode === undefined ? {} : { param: "mode" }),
          };
          throw new AppError(policy.fault === undefined ? "conflict" : "invalid_request", { client });
        }
        const digest = createHash("sha256")
          .update(canonicalJson([command, stdin ?? ""]))
          .digest("hex");
        await changes.make(tenantId, { type: "sandbox.exec", mode: policy.mode.value, digest }, options);

        const hungUp = new AbortController();
        reply.raw.once("close", () => hungUp.abort());
        if (reply.raw.destroyed) hungUp.abort(); // while the audit was written
        const lines = new PassThrough();
        const write = (line: object): void => void lines.write(`${JSON.stringify(line)}\n`);
        void run(
          {
            argv: command,
            stdin: Buffer.from(stdin ?? "", "base64"),
            onOutput: (stream, chunk) => write({ type: stream, data: Buffer.from(chunk).toString("base64") }),
          },
          hungUp.signal,
        ).then(
          (end) => {
            write(endLine(policy.mode.value, end));
            lines.end();
          },
          (error: unknown) => {
            request.log.error({ err: error }, "a command in a sandbox failed");
            lines.destroy(); // half an answer is none
          },
        );
        return await reply.header("cache-control", "no-store").type("application/x-ndjson").send(lines);
      },
    );

    app.get(
      "/v1/tenants/:tenant/sandbox/file",
      {
        config: {
          access: "admin:all",
          describes: { summary: "A file out of the tenant's sandbox, as its bytes", query: copyQuery },
        },
      },
      async (request, reply) => {
        const { path } = copyQuery.parse(request.query);
        const tenantId = await tenantIdOf(request);
        const file = await sandboxes.openFile(tenantId, path);
        if (file === undefined) throw new AppError("not_found", { client: { message: "There is no such file.", param: "path" } });
        reply.raw.once("close", () => void file.close());
        try {
          const { sizeBytes } = file;
          if (sizeBytes > maxCopyBytes)
            throw new AppError("request_too_large", { client: { message: "The file has more than 1 GiB.", param: "path" } });
          const digest = createHash("sha256").update(path).digest("hex");
          await changes.make(tenantId, { type: "sandbox.copy", sizeBytes, digest }, changeOptionsOf(request));
          return await reply
            .header("cache-control", "no-store")
            .header("x-content-type-options", "nosniff")
            .header("content-disposition", "attachment")
            .header("content-length", sizeBytes)
            .type("application/octet-stream")
            .send(Readable.from(file.read(), { objectMode: false }));
        } catch (error) {
          await file.close();
          throw error;
        }
      },
    );
  };

const endLine = (
  mode: string,
  { exitCode, signal, reason, detail, wallMs, peakMemoryBytes, cpuMs, truncated, enforcement }: CommandEnd,
) => ({
  type: "exit",
  exit_code: exitCode ?? null,
  signal: signal ?? null,
  reason,
  ...(detail === undefined ? {} : { detail }),
  wall_ms: wallMs,
  peak_memory_bytes: peakMemoryBytes ?? null,
  cpu_ms: cpuMs ?? null,
  truncated,
  mode,
  enforcement,
});

function explanationOf({ policy, refused }: SandboxAnswer) {
  const { mode, limits, runtime, runtimeClass, image, seccomp, network } = policy;
  return {
    mode,
    limits: Object.fromEntries(sandboxLimitNames.map((name) => [name, limits[name]])),
    runtime,
    runtime_class: { ...runtimeClass, value: runtimeClass.value ?? null },
    image: { ...image, value: image.value ?? null },
    seccomp,
    network,
    refused: refused ?? null,
  };
}
