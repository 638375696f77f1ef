import { sha256Hex } from "./sha256.ts";

/**
 * The candidate that a key belongs to, by rendezvous (highest random weight) hashing: everybody who knows the same candidates names the
 * same one, and a candidate that comes or goes moves only the keys that it wins or had.
 */
export function rendezvousWinner<Candidate extends { readonly id: string }>(
  key: string,
  candidates: readonly Candidate[],
): Candidate | undefined {
  let winner: { readonly candidate: Candidate; readonly weight: string } | undefined;
  for (const candidate of candidates) {
    const weight = sha256Hex(`${candidate.id}\n${key}`); // an id holds no line end
    if (winner === undefined || weight > winner.weight) winner = { candidate, weight };
  }
  return winner?.candidate;
}
