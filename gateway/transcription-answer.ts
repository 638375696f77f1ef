import { AppError } from "../domain/app-error.ts";

export type TranscriptionFormat = "json" | "verbose_json" | "text" | "srt" | "vtt";
export const transcriptionFormats: readonly TranscriptionFormat[] = ["json", "verbose_json", "text", "srt", "vtt"];

type Segment = { readonly start: number; readonly end: number; readonly text: string };

/** A provider's transcription in the form that was asked for; a text, or an object for the two JSON forms. */
export function renderTranscription(body: Readonly<Record<string, unknown>>, format: TranscriptionFormat): string | object {
  switch (format) {
    case "json":
    case "verbose_json":
      return body;
    case "text":
      return `${String(body["text"])}\n`;
    case "srt":
      return segmentsOf(body)
        .map(({ start, end, text }, place) => `${place + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${text}\n\n`)
        .join("");
    case "vtt":
      return `WEBVTT\n\n${segmentsOf(body)
        .map(({ start, end, text }) => `${clock(start, ".")} --> ${clock(end, ".")}\n${text}\n\n`)
        .join("")}`;
  }
}

function segmentsOf({ segments }: Readonly<Record<string, unknown>>): readonly Segment[] {
  if (!Array.isArray(segments)) throw new AppError("provider_error", { why: "the transcription holds no segments" });
  return segments.map((raw: Partial<Record<keyof Segment, unknown>>) => ({
    start: Number(raw?.start) || 0,
    end: Number(raw?.end) || 0,
    // An empty line ends a cue, and an arrow begins one.
    text: (typeof raw?.text === "string" ? raw.text : "")
      .trim()
      .replaceAll(/\n{2,}/g, "\n")
      .replaceAll("-->", "->"),
  }));
}

function clock(seconds: number, point: string): string {
  const ms = Math.max(0, Math.round(seconds * 1_000));
  const two = (value: number): string => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1_000) % 60)}${point}${String(ms % 1_000).padStart(3, "0")}`;
}
