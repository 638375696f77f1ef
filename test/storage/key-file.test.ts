import { chmodSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { openKeyFile } from "../../storage/key-file.ts";
import { emptyHome } from "../control-plane/control-stage.ts";

const idsOf = (ring: ReturnType<typeof openKeyFile>): readonly string[] => ring?.keys().map(({ keyId }) => keyId) ?? [];

test("a first start makes a key that only its owner may read, and a second one reads the same", () => {
  const home = emptyHome();

  const first = openKeyFile(home, { mayCreate: true });
  const again = openKeyFile(home, { mayCreate: true });

  expect(statSync(join(home, "kek")).mode & 0o7777).toBe(0o400);
  expect(Buffer.from(readFileSync(join(home, "kek"), "utf8").trim(), "base64")).toHaveLength(32);
  expect(idsOf(again)).toEqual(idsOf(first));
});

test("where the database knows a key already none is made", () => {
  const home = emptyHome();

  expect(openKeyFile(home, { mayCreate: false })).toBeUndefined();

  expect(() => statSync(join(home, "kek"))).toThrow("ENOENT");
});

const made = (home: string): string => {
  openKeyFile(home, { mayCreate: true });
  return join(home, "kek");
};
const spoilt: Record<string, (path: string) => void> = {
  "others may read": (path) => chmodSync(path, 0o440),
  "its owner may write": (path) => chmodSync(path, 0o600),
  "everybody may write": (path) => chmodSync(path, 0o402),
  "runs as its owner": (path) => chmodSync(path, 0o4400),
  "is a link": (path) => {
    renameSync(path, `${path}.real`);
    symlinkSync(`${path}.real`, path);
  },
  "is a dangling link": (path) => {
    rmSync(path);
    symlinkSync(`${path}.gone`, path);
  },
  "is a directory": (path) => {
    rmSync(path);
    mkdirSync(path);
  },
  "is empty": (path) => replace(path, ""),
  "holds something else": (path) => replace(path, "correct horse battery staple\n"),
  "holds a key that is too short": (path) => replace(path, `${Buffer.alloc(16).toString("base64")}\n`),
  "is huge": (path) => replace(path, `${Buffer.alloc(32).toString("base64")}\n`.repeat(1_000)),
};
function replace(path: string, text: string): void {
  rmSync(path);
  writeFileSync(path, text, { mode: 0o400 });
}

for (const [what, spoil] of Object.entries(spoilt)) {
  test(`a key file that ${what} is refused by its path, and left as it is`, () => {
    const path = made(emptyHome());
    spoil(path);

    expect(() => openKeyFile(join(path, ".."), { mayCreate: true })).toThrow(
      expect.objectContaining({ code: "invalid_configuration", message: expect.stringContaining(path) }),
    );
  });
}

test("a key file of another user is refused", () => {
  if (process.getuid?.() !== 0) return; // only root can give a file away
  const home = emptyHome();
  const path = made(home);
  const stolen = join(home, "other");
  linkSync(path, stolen);
  process.seteuid?.(65_534);
  try {
    expect(() => openKeyFile(home, { mayCreate: false })).toThrow(expect.objectContaining({ code: "invalid_configuration" }));
  } finally {
    process.seteuid?.(0);
  }
});

test("a rotation keeps the earlier key beside the new one until it is forgotten, and every reader of the file follows", () => {
  const home = emptyHome();
  const ring = openKeyFile(home, { mayCreate: true });
  const other = openKeyFile(home, { mayCreate: false });
  const [current = ""] = idsOf(ring);

  const next = ring?.prepareNext(current) ?? "";
  const repeated = ring?.prepareNext(current);
  other?.reload();

  expect(next).not.toBe(current);
  expect(repeated).toBe(next); // an attempt that died here had made it already
  expect(idsOf(ring)).toEqual([next, current]);
  expect(idsOf(other)).toEqual([next, current]);
  expect(statSync(join(home, "kek")).mode & 0o7777).toBe(0o400);

  ring?.keepOnly(next);
  other?.reload();

  expect([idsOf(ring), idsOf(other)]).toEqual([[next], [next]]);
});
