import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { linkSync, symlinkSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { onTestFinished } from "vitest";

/** What must never be read. */
export const canary = "another tenant's secret";

/** Paths that must be refused by their text alone: what each is, and the path. */
export const hostilePaths: readonly (readonly [what: string, path: string])[] = [
  ["nothing", ""],
  ["absolute", "/etc/passwd"],
  ["the root", "/"],
  ["two slashes first", "//etc/passwd"],
  ["absolute into itself", "/work/notes.md"],
  ["a home", "~"],
  ["a file of a home", "~/secret.txt"],
  ["a user's home", "~root/.ssh/id_ed25519"],
  ["the parent", ".."],
  ["a climb", "../secret.txt"],
  ["a long climb", "../../../../../../../../etc/passwd"],
  ["down and up", "inner/../../secret.txt"],
  ["down and up to where it was", "inner/../notes.md"],
  ["a climb at the end", "inner/.."],
  ["a climb with a slash after", "../"],
  ["a climb behind a dot", "./../secret.txt"],
  ["a climb through a name that is not there", "nothing/../../secret.txt"],
  ["a dot", "."],
  ["a dot first", "./notes.md"],
  ["a dot inside", "inner/./file.txt"],
  ["a dot last", "inner/."],
  ["an empty component", "inner//file.txt"],
  ["a slash last", "inner/"],
  ["many slashes", "inner////"],
  ["NUL", "\0"],
  ["NUL before an ending", "notes.md\0.png"],
  ["NUL before a climb", "inner\0/../../secret.txt"],
  ["a line feed", "notes\n.md"],
  ["a carriage return", "notes\r.md"],
  ["a tab", "notes\t.md"],
  ["an escape sequence", "\u001b[2Jnotes.md"],
  ["backspaces", "secret\b\b\b.md"],
  ["DEL", "notes\u007f.md"],
  ["a C1 control", "notes\u0085.md"],
  ["an operating system command in C1", "\u009d0;title\u009cnotes.md"],
  ["a line separator", "notes\u2028.md"],
  ["text that runs backwards", "notes\u202edm.exe"],
  ["an isolate", "\u2066notes.md\u2069"],
  ["a space of no width", "notes\u200b.md"],
  ["a byte order mark", "\ufeffnotes.md"],
  ["a soft hyphen", "no\u00adtes.md"],
  ["half a surrogate pair", "notes\ud800.md"],
  ["a climb with backslashes", "..\\..\\secret.txt"],
  ["both slashes", "inner\\../secret.txt"],
  ["a drive", "C:\\Windows\\win.ini"],
  ["a drive with a slash", "C:/Windows/win.ini"],
  ["a file of a drive's own directory", "C:secret.txt"],
  ["a share", "\\\\server\\share\\secret.txt"],
  ["a device path of Windows", "\\\\?\\C:\\secret.txt"],
  ["another stream of a file", "notes.md:hidden"],
  ["the data stream", "notes.md::$DATA"],
  ["a URL", "file:///etc/passwd"],
  ["CON", "con"],
  ["NUL as a name", "NUL.txt"],
  ["a serial port", "inner/COM1"],
  ["a printer with an ending", "lpt9.tar.gz"],
  ["a serial port in superscript", "com\u00b9"],
  ["a serial port in full width", "\uff23\uff2f\uff2d1"],
  ["a dot at the end", "notes.md."],
  ["three dots", ".../secret.txt"],
  ["a space at the end", "notes.md "],
  ["a space at the start", " notes.md"],
  ["two dots and a space", ".. /secret.txt"],
  ["a space that does not break, and dots", "\u00a0../secret.txt"],
  ["an encoded climb", "%2e%2e/secret.txt"],
  ["an encoded slash", "..%2fsecret.txt"],
  ["an encoded backslash", "..%5Csecret.txt"],
  ["an encoded NUL", "notes.md%00.png"],
  ["half encoded", ".%2E/secret.txt"],
  ["dots in full width", "\uff0e\uff0e/secret.txt"],
  ["a slash in full width", "..\uff0fsecret.txt"],
  ["a leader of two dots", "\u2025/secret.txt"],
  ["a backslash in full width", "..\uff3csecret.txt"],
  ["a colon in full width", "C\uff1asecret.txt"],
  ["a name of 256 bytes", "n".repeat(256)],
  ["a name of 256 bytes in 86 characters", `${"€".repeat(85)}n`],
  ["4097 bytes", `${"d".repeat(200)}/`.repeat(20) + "n".repeat(77)],
  ["a megabyte", "a/".repeat(500_000)],
  ["65 components", `${"d/".repeat(64)}n`],
  ["a temporary name of ours", ".openclaw-0011223344556677"],
  ["a temporary directory of ours", "inner/.openclaw-x/file.txt"],
];

/** Paths that look odd and are plain names. */
export const plainPaths: readonly string[] = [
  "notes.md",
  "inner/deep/file.txt",
  ".hidden",
  ".config/settings.json",
  "..hidden",
  "...hidden",
  "a..b",
  "file~",
  "with space.md",
  "-rf",
  "$(id)",
  "console.log",
  "com10.txt",
  "nul-file.txt",
  "%252e%252e%252fsecret.txt",
  "wa%3A%2B15551234567%3Adefault.jsonl",
  "Größe.md",
  "会議.md",
  "👩‍👩‍👧.png",
  "n".repeat(255),
  `${"d/".repeat(63)}n`,
  `${`${"d".repeat(200)}/`.repeat(20)}${"n".repeat(76)}`,
];

/** A directory that paths are taken in, one beside it, and what both lie in; `base` and `outside` hold a `secret.txt` each. */
export type Planted = { readonly root: string; readonly outside: string; readonly base: string };

type Attack = [what: string, plant: (place: Planted) => unknown, path: string, harmless?: readonly string[]];

/** What a tenant's program may have left in its directory: what it is, how it is made, the path, and the operations that it is no attack on. */
export const plantedLinks: readonly Attack[] = [
  ["a link to a file outside", ({ root, base }) => symlinkSync(join(base, "secret.txt"), join(root, "x")), "x", ["remove"]],
  ["a relative link outside", ({ root }) => symlinkSync("../secret.txt", join(root, "x")), "x", ["remove"]],
  ["a link to a file inside", ({ root }) => symlinkSync("notes.md", join(root, "x")), "x", ["remove"]],
  ["a link to /etc/passwd", ({ root }) => symlinkSync("/etc/passwd", join(root, "x")), "x", ["remove"]],
  ["a link to the root of the host", ({ root }) => symlinkSync("/", join(root, "x")), "x/etc/passwd"],
  ["a directory that is a link outside", ({ root, outside }) => symlinkSync(outside, join(root, "x")), "x/secret.txt"],
  ["a directory that is a link inside", ({ root }) => symlinkSync("inner", join(root, "x")), "x/file.txt"],
  ["a directory that is a link to its parent", ({ root }) => symlinkSync("..", join(root, "x")), "x/secret.txt"],
  ["a deep directory that is a link", ({ root, outside }) => symlinkSync(outside, join(root, "inner/deep/x")), "inner/deep/x/secret.txt"],
  [
    "links in a row",
    ({ root, outside }) => {
      symlinkSync(outside, join(root, "inner/second"));
      symlinkSync("inner/second", join(root, "x"));
    },
    "x/secret.txt",
  ],
  ["a dangling link outside", ({ root, outside }) => symlinkSync(join(outside, "new.txt"), join(root, "x")), "x", ["remove"]],
  ["a dangling link inside", ({ root }) => symlinkSync("new.txt", join(root, "x")), "x", ["remove"]],
  ["a dangling link as a directory", ({ root, outside }) => symlinkSync(join(outside, "new"), join(root, "x")), "x/file.txt"],
  ["a link to itself", ({ root }) => symlinkSync("x", join(root, "x")), "x", ["remove"]],
  [
    "two links in a circle",
    ({ root }) => {
      symlinkSync("y", join(root, "x"));
      symlinkSync("x", join(root, "y"));
    },
    "x/file.txt",
  ],
  ["a link of the kernel's to the working directory", ({ root }) => symlinkSync("/proc/self/cwd", join(root, "x")), "x/package.json"],
  ["a link of the kernel's to the root", ({ root }) => symlinkSync("/proc/self/root", join(root, "x")), "x/etc/passwd"],
  ["a link to a descriptor", ({ root }) => symlinkSync("/proc/self/fd/0", join(root, "x")), "x", ["remove"]],
  ["a FIFO", ({ root }) => execFileSync("mkfifo", [join(root, "x")]), "x", ["remove"]],
  [
    "a link to a FIFO",
    ({ root, outside }) => {
      execFileSync("mkfifo", [join(outside, "fifo")]);
      symlinkSync(join(outside, "fifo"), join(root, "x"));
    },
    "x",
    ["remove"],
  ],
  [
    "a socket",
    async ({ root }) => {
      const server = createServer().listen(join(root, "x"));
      await once(server, "listening");
      onTestFinished(() => void server.close());
    },
    "x",
    ["remove"],
  ],
  ["a link to a device", ({ root }) => symlinkSync("/dev/zero", join(root, "x")), "x", ["remove"]],
  ["a file as a directory", () => {}, "notes.md/x", ["stat", "read", "list", "remove"]],
  [
    "a second name of a file outside",
    ({ root, base }) => linkSync(join(base, "secret.txt"), join(root, "x")),
    "x",
    ["write", "stat", "remove"],
  ],
];
