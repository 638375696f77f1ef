import { chmodSync, chownSync, lstatSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type EgressOutside, realOutside } from "./egress-decision.ts";
import type { EgressEvent } from "../domain/egress-event.ts";
import type { EgressGrant } from "./egress-grant.ts";
import { createEgressProxy, type EgressTimes } from "./egress-proxy.ts";
import { isOrphaned, ownerName } from "./run-owner.ts";
import type { SandboxLimits } from "./sandbox-driver.ts";
import type { SeccompProfile } from "./seccomp-profile.ts";

/** Where a sandbox has its way out, as it sees it. */
export const egressSocketInside = "/run/openclaw/egress.sock";
const RELAY_PORT = 3128;
const proxyUrl = `http://127.0.0.1:${RELAY_PORT}`;

/** A way out of one sandbox, and of no other. */
export type EgressDoor = {
  /** On the host, for the one uid; to be mounted in the sandbox at `egressSocketInside`. */
  readonly socketPath: string;
  /** Tells of what happens from now on; before a program runs nothing does. */
  attend(onEvent: ((event: EgressEvent) => void) | undefined): void;
  /** Takes the socket's name away, once it is mounted: then nothing is left of it but in the sandbox. */
  hide(): void;
  close(): Promise<void>;
};

export type EgressDoorsOptions = { readonly outside?: EgressOutside; readonly times?: EgressTimes };

/** Makes a door for each sandbox that may reach anything. */
export class EgressDoors {
  readonly #outside: EgressOutside;
  readonly #times: EgressTimes | undefined;
  #directory: string | undefined;
  #made = 0;

  constructor({ outside = realOutside(), times }: EgressDoorsOptions = {}) {
    [this.#outside, this.#times] = [outside, times];
  }

  /** @param uid the sandbox's own, where it is not this process's */
  async open(grant: EgressGrant, uid: number | undefined): Promise<EgressDoor> {
    this.#directory ??= makeDirectory();
    this.#made += 1;
    const socketPath = join(this.#directory, `${this.#made}.sock`);
    let onEvent: ((event: EgressEvent) => void) | undefined;
    const proxy = createEgressProxy(grant, { outside: this.#outside, times: this.#times, onEvent: (event) => onEvent?.(event) });
    await proxy.listen(socketPath);
    const hide = (): void => rmSync(socketPath, { force: true });
    try {
      chmodSync(socketPath, 0o600);
      if (uid !== undefined) chownSync(socketPath, uid, uid);
    } catch (error) {
      await proxy.close();
      throw error;
    }
    return {
      socketPath,
      attend(listener) {
        onEvent = listener;
      },
      hide,
      async close() {
        await proxy.close();
        hide();
      },
    };
  }

  dispose(): void {
    if (this.#directory !== undefined) rmSync(this.#directory, { recursive: true, force: true });
    this.#directory = undefined;
  }
}

/** Other users may go through it and not look into it: bubblewrap mounts the socket as the tenant's uid. */
function makeDirectory(): string {
  const directory = mkdtempSync(join(realpathSync(tmpdir()), `${ownerName}-egress-`));
  chmodSync(directory, process.getuid?.() === 0 ? 0o711 : 0o700);
  return directory;
}

/** Removes the sockets of gateways that were ended by kill -9; nobody listens on them. */
export function sweepOrphanedDoors(): void {
  const parent = tmpdir();
  for (const name of readdirSync(parent).filter((one) => one.includes("-egress-") && isOrphaned(one))) {
    const path = join(parent, name);
    const found = lstatSync(path, { throwIfNoEntry: false });
    if (found?.isDirectory() && found.uid === process.getuid?.()) rmSync(path, { recursive: true, force: true });
  }
}

const relayScript = readFileSync(join(import.meta.dirname, "egress-relay.pl"), "utf8");
/** Of the relay's open files, those that are no connection's: the listener, the standard ones and a few that come and go. */
const RELAY_FILES = 12;

/** The relay inside, as arguments of Perl: the script, its port, the socket, and how many connections its open files suffice for. */
export function relayArguments({ limits: { connections } }: EgressGrant, { openFiles }: Pick<SandboxLimits, "openFiles">): string[] {
  const most = Math.max(1, Math.min(connections, Math.floor((openFiles - RELAY_FILES) / 2)));
  return [relayScript, String(RELAY_PORT), egressSocketInside, String(most)];
}

/** What makes programs use the way out: curl, git, pip, npm, Node and whatever else knows these names. No name is resolved inside. */
export function egressEnvironment({ rules }: EgressGrant): Readonly<Record<string, string>> {
  const both = (name: string, value: string): Record<string, string> => ({ [name]: value, [name.toLowerCase()]: value });
  return {
    ...both("HTTP_PROXY", proxyUrl),
    ...both("HTTPS_PROXY", proxyUrl),
    ...both("ALL_PROXY", proxyUrl),
    ...both("NO_PROXY", "localhost,127.0.0.1,::1"),
    NODE_USE_ENV_PROXY: "1",
    GIT_TERMINAL_PROMPT: "0",
    // Debian's pip installs nothing beside the system's packages unless it is told that it may; the system is read-only here.
    PIP_BREAK_SYSTEM_PACKAGES: "1",
    PIP_DISABLE_PIP_VERSION_CHECK: "1",
    OPENCLAW_NETWORK: rules.join(" "),
  };
}

const neededSyscalls = ["socket", "bind", "listen", "connect"];

/** The relay needs to listen on the loopback. */
export const permitsRelay = ({ ipSockets, allowed }: SeccompProfile): boolean =>
  ipSockets && neededSyscalls.every((name) => allowed.includes(name)) && ["accept", "accept4"].some((name) => allowed.includes(name));
