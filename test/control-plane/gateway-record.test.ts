import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import {
  claimGateway,
  gatewayRecordPath,
  readGatewayRecord,
  removeGatewayRecord,
  runningGateway,
  writeGatewayRecord,
} from "../../control-plane/gateway-record.ts";
import { emptyHome } from "./control-stage.ts";

/** A process that looks like a gateway: `node …/app/main.ts`. */
async function gatewayProcess(): Promise<number> {
  const folder = join(emptyHome(), "app");
  mkdirSync(folder);
  const main = join(folder, "main.ts");
  writeFileSync(main, "process.stdout.write('up'); setInterval(() => undefined, 1000);");
  const child = spawn(process.execPath, [main], { stdio: ["ignore", "pipe", "ignore"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  await once(child.stdout, "data");
  if (child.pid === undefined) throw new Error("no process");
  return child.pid;
}

async function deadPid(): Promise<number> {
  const child = spawn(process.execPath, ["-e", ""]);
  await once(child, "exit");
  return child.pid ?? 0;
}

test("a free home is taken, and a second start learns who has it", async () => {
  const home = emptyHome();
  const pid = await gatewayProcess();

  expect(claimGateway(home, { pid })).toBeUndefined();
  writeGatewayRecord(home, { pid, url: "http://127.0.0.1:18789" });

  expect(claimGateway(home, { pid: process.pid })).toEqual({ pid, url: "http://127.0.0.1:18789" });
  expect(runningGateway(home)).toEqual({ pid, url: "http://127.0.0.1:18789" });
});

test("a dead gateway's record is cleared away", async () => {
  const home = emptyHome();
  const pid = await deadPid();
  writeGatewayRecord(home, { pid, url: "http://127.0.0.1:1" });

  expect(runningGateway(home)).toBeUndefined();
  expect(claimGateway(home, { pid: process.pid })).toBeUndefined();
  expect(readGatewayRecord(home)).toEqual({ pid: process.pid });
});

test("another program that was given the dead gateway's pid is not taken for it", () => {
  const home = emptyHome();
  writeGatewayRecord(home, { pid: process.pid, url: "http://127.0.0.1:1" }); // this test is no gateway

  expect(runningGateway(home)).toBeUndefined();
});

test("a half-written file of another time is no record", () => {
  const home = emptyHome();
  writeFileSync(gatewayRecordPath(home), '{"pid": 1');

  expect(readGatewayRecord(home)).toBeUndefined();
  expect(claimGateway(home, { pid: process.pid })).toBeUndefined();
});

test("only its own record is removed", async () => {
  const home = emptyHome();
  const pid = await gatewayProcess();
  claimGateway(home, { pid });

  removeGatewayRecord(home, process.pid);
  expect(readGatewayRecord(home)).toEqual({ pid });

  removeGatewayRecord(home, pid);
  expect(readGatewayRecord(home)).toBeUndefined();
  removeGatewayRecord(home, pid);
});
