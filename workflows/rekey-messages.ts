import { defineQuery } from "@temporalio/workflow";
import type { KeyRotationProgress } from "../domain/key-rotation.ts";

/** What opens the workflow `rekey:_system:<rotation id>`. */
export type RekeyInput = { readonly rotationId: string };

export const rekeyProgress = defineQuery<KeyRotationProgress>("progress");
