import { DefaultFailureConverter } from "@temporalio/common";

/** Messages and stacks of failures go into a payload, which the codec encrypts: in a history they would stand in the clear. */
export const failureConverter = new DefaultFailureConverter({ encodeCommonAttributes: true });
