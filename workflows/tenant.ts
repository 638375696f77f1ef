import { defineSearchAttributeKey } from "@temporalio/common";
import {
  ActivityFailure,
  ApplicationFailure,
  CancellationScope,
  ParentClosePolicy,
  allHandlersFinished,
  condition,
  continueAsNew,
  patched,
  proxyActivities,
  setCurrentDetails,
  setHandler,
  sleep,
  startChild,
  workflowInfo,
} from "@temporalio/workflow";
import type { AuditActivities } from "../activities/audit-activities.ts";
import {
  type AuditEntry,
  type ChainHead,
  type ChangeNote,
  type ChangeOutcome,
  type Command,
  belongsToChain,
  hashOfEntry,
  lifeKindOf,
  opMemoryMs,
  subjectOf,
} from "../domain/audit.ts";
import { lifeWorkflowIdOf, ownerOfWorkflowId, parseTenantId, systemOwner } from "../domain/tenant.ts";
import { quotaFieldsOf } from "../domain/tenant-quota.ts";
import { openQuotaDesk } from "./quota-desk.ts";
import {
  type ChangeOrder,
  type ChangeResult,
  type RememberedOperation,
  type TenantInput,
  changeState,
  tenantState,
} from "./tenant-messages.ts";

/** Operations remembered by the run; older ones of the last 24 h are found in the database. */
const rememberedOperations = 200;
/** Changes that the status page names. */
const notedChanges = 10;

const tenantIdKey = defineSearchAttributeKey("TenantId", "KEYWORD");

// The heartbeat finds a dead worker before the callers in line give up; the place in the chain makes the next attempt safe.
const effects = {
  startToCloseTimeout: "15s",
  heartbeatTimeout: "3s",
  retry: { initialInterval: "100ms", backoffCoefficient: 2, maximumInterval: "5s" },
} as const;
const audit = proxyActivities<AuditActivities>(effects);

/**
 * The audit chain of a tenant, or of the system: every state change goes through it, one at a time, and its event history is the
 * second record of them (docs/adr/007). It ends with the chain's last entry, when the tenant is erased, and cancelling it changes nothing. The system's
 * starts `provision:<tenant>` and `erase:<tenant>` in the workflow task that answers the change: neither is there without the other.
 */
export async function tenant(input: TenantInput): Promise<{ readonly head: ChainHead | undefined }> {
  const owner = ownerOfWorkflowId(workflowInfo().workflowId);
  const operations = new Map<string, RememberedOperation>((input.operations ?? []).map((operation) => [operation.opId, operation]));
  let { head, broken } = input;
  let adoptedSeq = input.adoptedSeq ?? 0;
  let changes = 0;
  let moving = false;
  let closed = false;
  let startsUnderWay = 0;
  let facts = input.tenant;
  let lastChanges: readonly ChangeNote[] = input.lastChanges ?? [];
  let lastInLine: Promise<void> = Promise.resolve();
  const quota = owner === systemOwner ? undefined : openQuotaDesk(input.quota);

  const describe = (): void => {
    const end = head === undefined ? "no change yet" : `entry ${head.seq} (${head.hash.slice(0, 12)})`;
    const ceilings =
      facts === undefined ? [] : Object.entries(quotaFieldsOf(facts.quota)).map(([name, value]) => `${name} ${value ?? "none"}`);
    const lines = [
      owner === systemOwner ? "State changes of **the system**" : `Tenant **${owner}**`,
      ...(facts === undefined ? [] : [`- state: ${facts.state}`, `- quota: ${ceilings.join(", ")}`, `- token epoch: ${facts.tokenEpoch}`]),
      // overlay version: told by overlay.update once there is one
      `- audit chain: ${end}${closed ? ", closed" : ""}`,
      ...(broken === undefined ? [] : [`- **BROKEN**: ${broken}. Changes are refused.`]),
      ...(lastChanges.length === 0 ? [] : ["", "Last changes"]),
      ...lastChanges.map(
        ({ seq, ts, action, by, outcome }) => `- ${seq}. ${action} by ${by}, ${ts}${outcome === "applied" ? "" : `, ${outcome}`}`,
      ),
    ];
    setCurrentDetails(lines.join("\n"));
  };

  /** The command's workflow, started once: a repeat meets the one that runs. */
  const startLifeOf = (command: Command, outcome: ChangeOutcome): void => {
    const kind = lifeKindOf(command);
    if (kind === undefined || outcome.state !== "applied" || !patched("starts provision and erase")) return;
    const tenantId = parseTenantId(subjectOf(owner, command).target);
    startsUnderWay++;
    startChild(kind, {
      workflowId: lifeWorkflowIdOf(kind, tenantId),
      args: [],
      parentClosePolicy: ParentClosePolicy.ABANDON,
      workflowTaskTimeout: "5s",
      typedSearchAttributes: [{ key: tenantIdKey, value: tenantId }],
      staticSummary: `${kind} of ${tenantId}`,
    })
      .catch(() => {}) // it runs already
      .finally(() => startsUnderWay--);
  };

  const inLine = async <T>(work: () => Promise<T>): Promise<T> => {
    const before = lastInLine;
    let done = (): void => {};
    lastInLine = new Promise((resolve) => (done = resolve));
    await before;
    try {
      return await work();
    } finally {
      done();
    }
  };

  const remember = (opId: string, outcome: ChangeOutcome): void => {
    operations.set(opId, { opId, outcome, atMs: Date.now() });
    for (const [oldest, { atMs }] of operations) {
      if (operations.size <= rememberedOperations && Date.now() - atMs < opMemoryMs) break;
      operations.delete(oldest);
    }
  };

  const refuse = (reason: string): ChangeResult => {
    broken = reason;
    describe();
    return { state: "broken", reason };
  };

  const perform = async ({ opId, command, actor, requestId }: ChangeOrder): Promise<ChangeResult> => {
    for (;;) {
      if (head === undefined) {
        head = await audit.readChainEnd();
        adoptedSeq = head.seq;
      }
      const attempt = { opId, command, actor, requestId, seq: head.seq + 1, prev: head.hash, ts: new Date(Date.now()).toISOString() };
      const options = { ...effects, activityId: `audit-${attempt.seq}`, summary: `${command.type} by ${actor.id}` };
      const answer = await audit.writeChange.executeWithOptions(options, [attempt]);
      switch (answer.state) {
        case "written": {
          if (!follows(answer.entry, head)) return refuse(`entry ${attempt.seq} was written with another hash than its content has`);
          head = { seq: answer.entry.seq, hash: answer.entry.hash };
          changes++;
          facts = answer.facts ?? facts;
          if (command.type === "quota.update" || command.type === "tenant.update") quota?.limitsChanged();
          lastChanges = [noteOf(answer.entry), ...lastChanges].slice(0, notedChanges);
          closed = command.type === "tenant.erase" && answer.outcome.state === "applied";
          if (!isFailure(answer.outcome)) remember(opId, answer.outcome);
          startLifeOf(command, answer.outcome);
          return { state: "done", outcome: answer.outcome };
        }
        case "repeated":
          remember(opId, answer.outcome);
          startLifeOf(command, answer.outcome);
          return { state: "done", outcome: answer.outcome };
        case "behind": {
          let next: ChainHead = head;
          for (const entry of answer.entries) {
            if (!follows(entry, next)) return refuse(`entry ${next.seq + 1} does not follow the one before it`);
            next = { seq: entry.seq, hash: entry.hash };
          }
          if (next.seq === head.seq) return refuse(`entries behind ${head.seq} cannot be read`);
          head = next;
          break;
        }
        case "broken":
          return refuse(answer.reason);
        case "closed":
          closed = true;
          return { state: "closed" };
      }
    }
  };

  setHandler(
    changeState,
    async (order): Promise<ChangeResult> =>
      await inLine(async () => {
        const known = operations.get(order.opId);
        if (known !== undefined && Date.now() - known.atMs < opMemoryMs) return { state: "done", outcome: known.outcome };
        if (closed) return { state: "closed" };
        if (moving) return { state: "moved" };
        if (broken !== undefined) return { state: "broken", reason: broken };
        if (Date.now() > order.notAfterMs)
          throw ApplicationFailure.nonRetryable("the change came too late and was not made", "unavailable");
        try {
          return await CancellationScope.nonCancellable(async () => await perform(order));
        } catch (error) {
          throw error instanceof ActivityFailure ? ApplicationFailure.nonRetryable("the change was not made", "internal") : error;
        } finally {
          describe();
        }
      }),
    {
      validator({ opId, command }) {
        if (!/^[!-~]{1,128}$/.test(opId)) throw ApplicationFailure.nonRetryable("the op id is malformed", "invalid_request");
        if (!belongsToChain(owner, command))
          throw ApplicationFailure.nonRetryable(`${command.type} is no change of ${owner}`, "tenant_violation");
      },
    },
  );
  setHandler(tenantState, () => ({ head, adoptedSeq, broken, tenant: facts, lastChanges }));

  describe();
  const isFull = (): boolean =>
    closed || changes >= (input.changesPerRun ?? Number.POSITIVE_INFINITY) || workflowInfo().continueAsNewSuggested;
  await CancellationScope.nonCancellable(async () => {
    await condition(isFull);
    quota?.close();
    moving = true; // whoever stands in line now is told to come again; no handler outlives the run
    await sleep(1, { summary: "moves to a new run" });
    await condition(() => allHandlersFinished() && startsUnderWay === 0);
  });
  if (closed) return { head };
  return await continueAsNew<typeof tenant>({
    changesPerRun: input.changesPerRun,
    tenant: facts,
    lastChanges,
    ...(head === undefined ? {} : { head }),
    adoptedSeq,
    operations: [...operations.values()],
    broken,
    quota: quota?.carry(),
  });
}

const noteOf = ({ seq, ts, action, actor, outcome }: AuditEntry): ChangeNote => ({
  seq,
  ts,
  action,
  by: `${actor.type} ${actor.id}`,
  outcome,
});

/** What failed may be tried again by the same operation. */
const isFailure = (outcome: ChangeOutcome): boolean => outcome.state === "refused" && outcome.code === "internal";

/** Whether the entry's hash is its content's and it stands behind `head`. */
function follows({ hash, ...fields }: AuditEntry, head: ChainHead): boolean {
  return fields.seq === head.seq + 1 && fields.prev === head.hash && hashOfEntry(fields) === hash;
}
