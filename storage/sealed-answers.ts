import type { Owner } from "../domain/tenant.ts";
import type { DataKeys } from "./data-keys.ts";
import type { ControlTx, Database } from "./database.ts";
import { openValue, sealValue, type OwnedPlace } from "./tenant-field-encryption.ts";

/**
 * The answer that an operation gets if this command is the one that is made. Several calls of one operation may each mint a
 * credential; the command's hash tells whose was made.
 */
export type AnswerKey = { readonly opId: string; readonly commandHash: string };

export const sealedAnswerTable = "sealed_answer";
export const sealedAnswerField = "answer";

const placeOf = (owner: Owner, { opId, commandHash }: AnswerKey): OwnedPlace => ({
  owner,
  table: sealedAnswerTable,
  field: sealedAnswerField,
  row: `${opId}/${commandHash}`,
});

/** Keeps an answer sealed before its change is sent: a crash at any moment leaves either none that counts, or the whole. */
export async function stageAnswer(
  { database, dataKeys }: { readonly database: Pick<Database, "withControl">; readonly dataKeys: DataKeys },
  owner: Owner,
  { subject, answer, memoryMs, ...key }: AnswerKey & { readonly subject: string; readonly answer: unknown; readonly memoryMs: number },
): Promise<void> {
  const sealed = await sealValue(dataKeys, placeOf(owner, key), Buffer.from(JSON.stringify(answer)));
  await database.withControl(async (tx) => {
    await tx.execute("delete from control.sealed_answer where created_at <= now() - $1::float8 * interval '1 ms'", [memoryMs]);
    await tx.execute(
      `insert into control.sealed_answer (op_id, command_hash, owner, subject, answer) values ($1, $2, $3, $4, $5)
       on conflict (op_id, command_hash) do nothing`,
      [key.opId, key.commandHash, owner, subject, sealed],
    );
  });
}

/** Takes back what was staged for a call that turned out to be a repeat. */
export async function discardAnswer(database: Pick<Database, "withControl">, { opId, commandHash }: AnswerKey): Promise<void> {
  await database.withControl(
    async (tx) =>
      await tx.execute("delete from control.sealed_answer where op_id = $1 and command_hash = $2 and not live", [opId, commandHash]),
  );
}

/** The answer of the change that was made, or undefined when it is no longer kept. */
export async function readAnswer(
  { database, dataKeys }: { readonly database: Pick<Database, "withControl">; readonly dataKeys: DataKeys },
  owner: Owner,
  { opId, commandHash, memoryMs }: AnswerKey & { readonly memoryMs: number },
): Promise<unknown> {
  const [row] = await database.withControl(
    async (tx) =>
      await tx.query<{ answer: Buffer }>(
        `select answer from control.sealed_answer
         where op_id = $1 and command_hash = $2 and owner = $3 and live and created_at > now() - $4::float8 * interval '1 ms'`,
        [opId, commandHash, owner, memoryMs],
      ),
    { readOnly: true },
  );
  if (row === undefined) return undefined;
  return JSON.parse((await openValue(dataKeys, placeOf(owner, { opId, commandHash }), row.answer)).toString());
}

/** A credential has been replaced, ended or made: answers with an earlier one of the subject go; this operation's counts from now on. */
export async function settleAnswers(tx: ControlTx, subject: string, { opId, commandHash }: AnswerKey): Promise<void> {
  await tx.execute("delete from control.sealed_answer where subject = $1 and live", [subject]);
  await tx.execute("update control.sealed_answer set live = true where op_id = $1 and command_hash = $2 and subject = $3", [
    opId,
    commandHash,
    subject,
  ]);
}
