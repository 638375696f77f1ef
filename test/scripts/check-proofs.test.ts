import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");

/** Wrong files, each with one fault: where it lies, what it says, and who says what about it. */
const wrong: readonly (readonly [what: string, file: string, text: string, checker: "tsc" | "oxlint" | "casts", says: RegExp])[] = [
  [
    "a handler that parses a tenant out of the body",
    "gateway/wrong-body.ts",
    `import type { FastifyRequest } from "fastify";\nimport { parseTenantId } from "../domain/tenant.ts";\nexport const wrong = (request: FastifyRequest) => parseTenantId((request.body as { tenant: string }).tenant);`,
    "oxlint",
    /A handler has its tenant from the token/,
  ],
  [
    "the same under another name",
    "gateway/wrong-alias.ts",
    `import { parseOwner as tenant } from "../domain/tenant.ts";\nexport const wrong = tenant;`,
    "oxlint",
    /A handler has its tenant from the token/,
  ],
  [
    "the same with everything of the module",
    "gateway/wrong-namespace.ts",
    `import * as tenants from "../domain/tenant.ts";\nexport const wrong = tenants.parseTenantId;`,
    "oxlint",
    /A handler has its tenant from the token/,
  ],
  [
    "a handler that gives the database the query's tenant",
    "gateway/wrong-query.ts",
    `import type { FastifyRequest } from "fastify";\nimport type { Database } from "../storage/database.ts";\nexport const wrong = async (request: FastifyRequest, database: Database) =>\n  await database.withTenant({ tenantId: (request.query as { tenant: string }).tenant, requestId: request.id }, async () => {});`,
    "tsc",
    /'string' is not assignable to type 'TenantId'|not assignable to parameter of type 'TenantContext'/,
  ],
  [
    "a handler that gives a client to the header's tenant",
    "gateway/wrong-header.ts",
    `import type { FastifyRequest } from "fastify";\nimport type { TenantClient } from "../temporal/tenant-client.ts";\nimport type { TenantId } from "../domain/tenant.ts";\nexport const wrong = (request: FastifyRequest, clientOf: (tenantId: TenantId) => TenantClient) => clientOf(String(request.headers["x-tenant"]));`,
    "tsc",
    /Argument of type 'string' is not assignable to parameter of type 'TenantId'/,
  ],
  [
    "a handler that casts a header to a tenant",
    "gateway/wrong-cast.ts",
    `import type { FastifyRequest } from "fastify";\nimport type { TenantId } from "../domain/tenant.ts";\nexport const wrong = (request: FastifyRequest) => request.headers["x-tenant"] as TenantId;`,
    "casts",
    /a cast to TenantId/,
  ],
  [
    "a handler that makes a principal",
    "gateway/wrong-principal.ts",
    `import type { TenantPrincipal } from "../control-plane/authentication.ts";\nexport const wrong = (body: unknown) => body as TenantPrincipal;`,
    "casts",
    /a cast to TenantPrincipal/,
  ],
  [
    "a route with an access that there is not",
    "gateway/wrong-access.ts",
    `import type { FastifyInstance } from "fastify";\nimport "./access.ts";\nexport const wrong = (app: FastifyInstance) => app.get("/x", { config: { access: "everybody" } }, async () => "x");`,
    "tsc",
    /access: string/,
  ],
  ...["gateway", "workers", "control-plane", "app", "activities", "storage", "streams"].map(
    (room) =>
      [
        `${room}/ with a client of Temporal's`,
        `${room}/wrong-client.ts`,
        `import { Client } from "@temporalio/client";\nexport const wrong = Client;`,
        "oxlint",
        /Only temporal\/ holds a client: use forTenant/,
      ] as const,
  ),
  ...["gateway", "workers", "control-plane", "app", "activities", "temporal", "streams", "sandbox"].map(
    (room) =>
      [
        `${room}/ with Postgres' driver`,
        `${room}/wrong-pg.ts`,
        `import pg from "pg";\nexport const wrong = pg.Pool;`,
        "oxlint",
        /Only storage\/ talks to Postgres/,
      ] as const,
  ),
  ...["gateway", "app", "activities", "temporal", "streams", "providers"].flatMap((room) =>
    ["node:fs", "node:fs/promises", "fs"].map(
      (module, index) =>
        [
          `${room}/ with ${module}`,
          `${room}/wrong-files-${index}.ts`,
          `import * as files from "${module}";\nexport const wrong = files;`,
          "oxlint",
          /touches no files/,
        ] as const,
    ),
  ),
  ...["node:fs", "node:crypto", "node:child_process", "pg", "@temporalio/client", "@temporalio/activity"].map(
    (module, index) =>
      [
        `a workflow with ${module}`,
        `workflows/wrong-module-${index}.ts`,
        `import * as wrong from "${module}";\nexport { wrong };`,
        "oxlint",
        /A workflow imports the Temporal workflow API only/,
      ] as const,
  ),
  [
    "a workflow that calls an activity itself",
    "workflows/wrong-activity.ts",
    `import { createTurnActivities } from "../activities/turn-activities.ts";\nexport const wrong = createTurnActivities;`,
    "oxlint",
    /sees this room's types only/,
  ],
  ["a workflow that fetches", "workflows/wrong-fetch.ts", `export const wrong = async () => await fetch("http://x/");`, "oxlint", /fetch/],
  ["a workflow that reads the environment", "workflows/wrong-environment.ts", `export const wrong = process.env;`, "oxlint", /process/],
  [
    "the gateway with a provider",
    "gateway/wrong-provider.ts",
    `import { createProviders } from "../providers/provider-registry.ts";\nexport const wrong = createProviders;`,
    "oxlint",
    /gateway\/ may not import this room/,
  ],
  [
    "a provider with the database",
    "providers/wrong-database.ts",
    `import { openDatabase } from "../storage/database.ts";\nexport const wrong = openDatabase;`,
    "oxlint",
    /providers\/ may not import this room/,
  ],
  [
    "the sandbox with a tenant's files",
    "sandbox/wrong-paths.ts",
    `import { tenantDirectory } from "../storage/tenant-paths.ts";\nexport const wrong = tenantDirectory;`,
    "oxlint",
    /sandbox\/ may not import this room/,
  ],
  [
    "the domain with a library",
    "domain/wrong-library.ts",
    `import fastify from "fastify";\nexport const wrong = fastify;`,
    "oxlint",
    /domain\/ imports zod and itself/,
  ],
];

/** The same with nothing wrong: that these pass shows that the others fail for their fault alone. */
const right: readonly (readonly [file: string, text: string])[] = [
  [
    "gateway/right-handler.ts",
    `import type { FastifyRequest } from "fastify";\nimport type { Database } from "../storage/database.ts";\nimport { tenantOf } from "./access.ts";\nexport const right = async (request: FastifyRequest, database: Database) => await database.withTenant(tenantOf(request), async () => {});`,
  ],
  ["temporal/right-client.ts", `import { Client } from "@temporalio/client";\nexport const right = Client;`],
  ["storage/right-pg.ts", `import { readFileSync } from "node:fs";\nimport pg from "pg";\nexport const right = [pg.Pool, readFileSync];`],
  [
    "workflows/right-types.ts",
    `import type { createTurnActivities } from "../activities/turn-activities.ts";\nexport type Right = typeof createTurnActivities;`,
  ],
];

describe("what npm run check refuses", () => {
  let tree: string;
  const said: Record<"tsc" | "oxlint" | "casts", string> = { tsc: "", oxlint: "", casts: "" };

  beforeAll(() => {
    tree = realpathSync(mkdtempSync(join(tmpdir(), "openclaw-check-")));
    const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], { cwd: root, encoding: "utf8" });
    for (const file of files.split("\n").filter((name) => /\.(ts|mjs|json)$/.test(name) && !/^(test|bench)\//.test(name))) {
      mkdirSync(join(tree, dirname(file)), { recursive: true });
      cpSync(join(root, file), join(tree, file));
    }
    symlinkSync(realpathSync(join(root, "node_modules")), join(tree, "node_modules"));
    for (const [, file, text] of wrong) writeFileSync(join(tree, file), `${text}\n`);
    for (const [file, text] of right) writeFileSync(join(tree, file), `${text}\n`);
    const run = (command: string, ...args: string[]): string => {
      const bin = join(root, "node_modules/.bin");
      const ran = spawnSync(command, args, { cwd: tree, encoding: "utf8", env: { ...process.env, PATH: `${bin}:${process.env["PATH"]}` } });
      expect(ran.status, `${command} finds nothing wrong`).toBe(1);
      return `${ran.stdout}${ran.stderr}`;
    };
    said.tsc = run("tsc", "--noEmit", "--pretty", "false");
    const { diagnostics } = JSON.parse(run("oxlint", "--deny-warnings", "--format", "json")) as {
      diagnostics: { filename: string; message: string; help?: string }[];
    };
    said.oxlint = diagnostics.map(({ filename, message, help }) => `${filename}: ${message} ${help}`).join("\n");
    said.casts = run("node", "scripts/check-casts.mjs");
  }, 300_000);
  afterAll(() => rmSync(tree, { recursive: true, force: true }));

  const linesAbout = (checker: keyof typeof said, file: string): string =>
    said[checker]
      .split("\n")
      .filter((line) => line.includes(file))
      .join("\n");

  test.each(wrong)("%s", (_what, file, _text, checker, says) => {
    expect(linesAbout(checker, file)).toMatch(says);
  });

  test.each(right)("%s passes", (file) => {
    for (const checker of ["tsc", "oxlint", "casts"] as const) expect(linesAbout(checker, file), checker).toBe("");
  });

  test("these checkers are the ones that the check runs", () => {
    const script = readFileSync(join(root, "scripts/check.mjs"), "utf8");

    for (const step of ['"tsc", "--noEmit"', '"oxlint", "--deny-warnings"', '"node", "scripts/check-casts.mjs"'])
      expect(script).toContain(step);
  });
});
