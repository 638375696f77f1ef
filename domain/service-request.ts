import type { FileId } from "./file-id.ts";

/** What a model is for. */
export const modelKinds = ["chat", "embedding", "transcription", "moderation"] as const;
export type ModelKind = (typeof modelKinds)[number];

/** Calls of a model that is no chat model: one turn with one call each, without a session. Also the billing `reason`. */
export type ServiceKind = Exclude<ModelKind, "chat">;

export const isServiceKind = (kind: string): kind is ServiceKind => kind !== "chat" && (modelKinds as readonly string[]).includes(kind);

export type EmbeddingRequest = {
  readonly service: "embedding";
  readonly model: string;
  /** Texts, or texts as the model's own token numbers. */
  readonly input: readonly string[] | readonly (readonly number[])[];
  readonly dimensions: number | undefined;
  readonly user: string | undefined;
};

export type TranscriptionRequest = {
  readonly service: "transcription";
  readonly model: string;
  /** The audio, as it was received. */
  readonly file: FileId;
  readonly filename: string;
  readonly sizeBytes: number;
  readonly language: string | undefined;
  readonly prompt: string | undefined;
  readonly temperature: number | undefined;
  /** Whether the answer needs the times of its parts. */
  readonly verbose: boolean;
  readonly granularities: readonly ("word" | "segment")[];
};

export type ModerationRequest = {
  readonly service: "moderation";
  readonly model: string;
  /** A text, texts, or parts with texts and images, as OpenAI takes them. */
  readonly input: string | readonly string[] | readonly ModerationPart[];
};
export type ModerationPart =
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "image_url"; readonly image_url: { readonly url: string } };

/** What a service turn was asked to do, as its row holds it. */
export type ServiceRequest = EmbeddingRequest | TranscriptionRequest | ModerationRequest;
