import type { ErrorCode } from "./app-error.ts";
import { canonicalJson } from "./canonical-json.ts";
import type { EgressVerdict } from "./egress-event.ts";
import { type InvoiceEventKey, type InvoiceResolution, invoiceEventIdOf } from "./invoice.ts";
import { sha256Hex } from "./sha256.ts";
import type { QuotaChange, TenantQuota } from "./tenant-quota.ts";
import { systemOwner, type LifeKind, type Owner } from "./tenant.ts";
import type { UsageDoubt } from "./usage.ts";

/** The state changes and the hash-chained entries that record them (contract §7, docs/adr/007). */

/** A tenant's id, or `system`; no tenant may be called that. */
export type ChainName = string;

export const systemChain = "system";
export const chainOf = (owner: Owner): ChainName => (owner === systemOwner ? systemChain : owner);

/** Who asked: an admin key's id, the first 8 hex of a tenant token's hash, or the part of the product. */
export type Actor = { readonly type: "admin" | "tenant" | "system"; readonly id: string };

export type Outcome = "applied" | "refused";

export type AuditEntry = {
  readonly chain: ChainName;
  /** From 1, without gaps. */
  readonly seq: number;
  /** ISO 8601 in UTC with milliseconds. */
  readonly ts: string;
  readonly actor: Actor;
  readonly action: string;
  readonly tenant: string | null;
  readonly target: string;
  readonly outcome: Outcome;
  readonly request_id: string;
  /** `offline` where the database alone recorded the change: at the first start, or by break-glass. */
  readonly workflow_id: string;
  readonly prev: string;
  readonly hash: string;
};

export type ChainHead = { readonly seq: number; readonly hash: string };

/** Before the first entry. */
export const genesis: ChainHead = { seq: 0, hash: "0".repeat(64) };

export const offlineWorkflowId = "offline";

export const hashOfEntry = (entry: Omit<AuditEntry, "hash">): string => sha256Hex(canonicalJson(entry));

/** An administrator read encrypted payloads of workflows. `digest`: SHA-256 over them, 64 hex. */
type DecodeCommand = { readonly type: "payloads.decode"; readonly count: number; readonly digest: string };

/** Commands on a tenant's own chain: the tenant is the chain's. */
export type TenantCommand =
  | DecodeCommand
  | { readonly type: "tenant.suspend" | "tenant.resume" | "token.revoke" }
  /** `tokenHash`: 64 hex. The token itself never leaves the edge that minted it. */
  | { readonly type: "token.rotate"; readonly tokenHash: string }
  /** What is absent is left as it is. */
  | { readonly type: "tenant.update"; readonly displayName?: string | null; readonly markup?: string | null; readonly quota?: QuotaChange }
  | { readonly type: "quota.update"; readonly quota: QuotaChange }
  /** The last entry of the chain: behind it nothing is written. Only the workflow `erase:<tenant>` makes it. */
  | { readonly type: "tenant.erase" }
  /** `digest`: SHA-256 of a text that stands, sealed, in the database. The text itself never leaves the edge. */
  | { readonly type: "overlay.write"; readonly digest: string }
  /** Tokens of a model call were counted here: the first such call of a day, model and doubt. */
  | { readonly type: "usage.alarm"; readonly callId: string; readonly model: string; readonly doubt: UsageDoubt }
  /** An administrator ran a command in the tenant's sandbox. `digest`: SHA-256 over its words and stdin, 64 hex. */
  | { readonly type: "sandbox.exec"; readonly mode: string; readonly digest: string }
  /** An administrator took a file out of the tenant's sandbox. `digest`: SHA-256 of its path, 64 hex. */
  | { readonly type: "sandbox.copy"; readonly sizeBytes: number; readonly digest: string }
  /** What sandboxed code asked for over the network and was answered; requests that came close together are told of at once. */
  | ({ readonly type: "sandbox.egress" } & EgressNote);

/** `count` of requests with one verdict for one destination, and the bytes of connections to it that have ended. */
export type EgressNote = {
  readonly verdict: EgressVerdict;
  /** `host:port`, bounded and in ASCII; empty where none was named. */
  readonly destination: string;
  /** Of the last one that was reached or refused. */
  readonly address: string | null;
  readonly count: number;
  readonly upBytes: number;
  readonly downBytes: number;
};

/** Commands on the chain `system`. */
export type SystemCommand =
  | DecodeCommand
  /** An administrator acted on workflows through Temporal's Web UI: what is passed on is not ours to describe. */
  | { readonly type: "temporal.operate"; readonly method: string; readonly path: string }
  | {
      readonly type: "tenant.create";
      readonly tenantId: string;
      readonly displayName: string | null;
      readonly markup: string | null;
      readonly tokenHash: string;
      /** Absent in changes of earlier versions: none. */
      readonly quota?: TenantQuota;
    }
  | { readonly type: "tenant.delete"; readonly tenantId: string }
  | { readonly type: "admin-key.create"; readonly keyId: string; readonly keyHash: string; readonly scopes: readonly string[] }
  | { readonly type: "admin-key.revoke"; readonly keyId: string }
  /** `hash`: of a card that is stored. `markupPpm`: the one that goes with it, absent where it stays. */
  | { readonly type: "rate-card.update"; readonly hash: string; readonly markupPpm?: number }
  /** `rotationId` is the rest of the workflow id `rekey:_system:<rotation id>`. */
  | { readonly type: "keys.rotate"; readonly rotationId: string }
  /** Usage of whole days is told to Stripe now: `period` is `YYYY-MM-DD..YYYY-MM-DD`. */
  | { readonly type: "invoice.run"; readonly tenantId: string; readonly period: string }
  /** What Stripe holds of an event is said by an administrator. */
  | ({ readonly type: "invoice.resolve"; readonly as: InvoiceResolution } & InvoiceEventKey)
  /** Journal, rows, sums, prices and counters differ: once for each difference (docs/adr/015). */
  | {
      readonly type: "billing.alarm";
      readonly findingId: string;
      readonly tenantId: string;
      readonly kind: string;
      readonly subject: string;
      readonly what: string;
    }
  /** `publicKey`: base64 of the key's SubjectPublicKeyInfo; its SHA-256 is the key's id. */
  | { readonly type: "audit-key.create"; readonly keyId: string; readonly publicKey: string };

export type Command = TenantCommand | SystemCommand;

/** The operations of each chain. */
const systemActions: readonly string[] = [
  "tenant.create",
  "tenant.delete",
  "admin-key.create",
  "admin-key.revoke",
  "keys.rotate",
  "rate-card.update",
  "audit-key.create",
  "payloads.decode",
  "temporal.operate",
  "invoice.run",
  "invoice.resolve",
  "billing.alarm",
] satisfies SystemCommand["type"][];
const tenantActions: readonly string[] = [
  "tenant.suspend",
  "tenant.resume",
  "token.revoke",
  "token.rotate",
  "tenant.update",
  "quota.update",
  "tenant.erase",
  "overlay.write",
  "usage.alarm",
  "payloads.decode",
  "sandbox.exec",
  "sandbox.copy",
  "sandbox.egress",
] satisfies TenantCommand["type"][];

export const belongsToChain = (owner: Owner, { type }: Command): boolean =>
  (owner === systemOwner ? systemActions : tenantActions).includes(type);

/** What an entry may say of a command: names and the first digits of hashes, never a secret. */
export function subjectOf(owner: Owner, command: Command): { readonly tenant: string | null; readonly target: string } {
  const tenant = owner === systemOwner ? null : owner;
  switch (command.type) {
    case "tenant.create":
    case "tenant.delete":
      return { tenant: command.tenantId, target: command.tenantId };
    case "tenant.suspend":
    case "tenant.resume":
    case "tenant.update":
    case "tenant.erase":
      return { tenant, target: tenant ?? "" };
    case "quota.update":
      return { tenant, target: "quota" };
    case "token.revoke":
      return { tenant, target: "token" };
    case "token.rotate":
      return { tenant, target: `token:${command.tokenHash.slice(0, 8)}` };
    case "overlay.write":
      return { tenant, target: `overlay:${command.digest}` };
    case "usage.alarm":
      return { tenant, target: `${command.callId} ${command.model} ${command.doubt}` };
    case "payloads.decode":
      return { tenant, target: `${command.count} payloads:${command.digest.slice(0, 8)}` };
    case "sandbox.exec":
      return { tenant, target: `${command.mode}:${command.digest.slice(0, 8)}` };
    case "sandbox.copy":
      return { tenant, target: `${command.sizeBytes} bytes:${command.digest.slice(0, 8)}` };
    case "sandbox.egress":
      return { tenant, target: describeEgress(command) };
    case "temporal.operate":
      return { tenant, target: `${command.method} ${command.path}` };
    case "admin-key.create":
    case "admin-key.revoke":
    case "audit-key.create":
      return { tenant, target: command.keyId };
    case "keys.rotate":
      return { tenant, target: `rekey:${command.rotationId}` };
    case "rate-card.update":
      return { tenant, target: `rate-card:${command.hash}${command.markupPpm === undefined ? "" : ` markup_ppm:${command.markupPpm}`}` };
    case "billing.alarm":
      return { tenant: command.tenantId, target: `${command.kind} ${command.subject}: ${command.what}` };
    case "invoice.run":
      return { tenant: command.tenantId, target: `invoice:${command.period}` };
    case "invoice.resolve":
      return { tenant: command.tenantId, target: `${command.mode}:${invoiceEventIdOf(command)} ${command.as}` };
  }
}

function describeEgress({ verdict, destination, address, count, upBytes, downBytes }: EgressNote): string {
  const facts = [
    ...(count === 0 ? [] : [count === 1 ? "once" : `${count} times`]),
    ...(verdict === "allowed" ? [`${upBytes} bytes sent`, `${downBytes} received`] : []),
  ];
  return `${verdict} ${destination || "(no destination)"}${address === null ? "" : ` at ${address}`}: ${facts.join(", ")}`;
}

/**
 * Whose credential a command makes or ends: it erases the kept answers that hold an earlier one of the same subject.
 * @returns undefined for a command that touches none
 */
export function credentialSubjectOf(owner: Owner, command: Command): string | undefined {
  switch (command.type) {
    case "tenant.create":
    case "tenant.delete":
      return `tenant:${command.tenantId}`;
    case "token.rotate":
    case "token.revoke":
      return `tenant:${owner}`;
    case "admin-key.create":
    case "admin-key.revoke":
      return `admin-key:${command.keyId}`;
    default:
      return undefined;
  }
}

/** The workflow that a command starts once it is applied. */
export const lifeKindOf = ({ type }: Command): LifeKind | undefined =>
  type === "tenant.create" ? "provision" : type === "tenant.delete" ? "erase" : undefined;

export type ChangeRequest = {
  /** 1 to 128 printable characters. The same id within 24 h is the same change. */
  readonly opId: string;
  readonly command: Command;
  readonly actor: Actor;
  readonly requestId: string;
};

/** How a change ended; `commandHash` tells a repeat with other arguments (another minted token) from the change itself. */
export type ChangeOutcome =
  | { readonly state: "applied"; readonly seq: number; readonly commandHash: string }
  | {
      readonly state: "refused";
      readonly seq: number;
      readonly commandHash: string;
      readonly code: ErrorCode;
      readonly message: string;
      readonly param: string | null;
    };

export const commandHashOf = (command: Command): string => sha256Hex(canonicalJson(command));

/** How long an op id is remembered. */
export const opMemoryMs = 24 * 60 * 60 * 1_000;

/** What the workflow asks its activity to write at exactly this place of the chain. */
export type ChangeAttempt = ChangeRequest & { readonly seq: number; readonly prev: string; readonly ts: string };

export type ChangeAnswer =
  | {
      readonly state: "written";
      readonly entry: AuditEntry;
      readonly outcome: ChangeOutcome;
      /** Of a tenant's own chain: what it is behind this entry. */
      readonly facts?: TenantFacts;
    }
  /** The op id has been used within its memory: nothing was written. */
  | { readonly state: "repeated"; readonly outcome: ChangeOutcome }
  /** Entries that were written without the workflow stand where this one would go. */
  | { readonly state: "behind"; readonly entries: readonly AuditEntry[] }
  | { readonly state: "broken"; readonly reason: string }
  /** The chain has had its last entry. */
  | { readonly state: "closed" };

/** What the tenant's workflow knows of the tenant itself. */
export type TenantFacts = { readonly state: "active" | "suspended" | "deleted"; readonly tokenEpoch: number; readonly quota: TenantQuota };

/** A change as a status page names it: no content. */
export type ChangeNote = {
  readonly seq: number;
  readonly ts: string;
  readonly action: string;
  readonly by: string;
  readonly outcome: Outcome;
};

/** What a chain's workflow knows of it. */
export type ChainState = {
  /** Undefined before the first change. */
  readonly head: ChainHead | undefined;
  /** The chain's end that this workflow took from the database when it had no memory of its own: it vouches for what follows. */
  readonly adoptedSeq: number;
  readonly broken: string | undefined;
  /** Undefined on the chain `system`, and before a tenant's first change. */
  readonly tenant?: TenantFacts | undefined;
  /** The newest ones, the last first. */
  readonly lastChanges?: readonly ChangeNote[];
};
