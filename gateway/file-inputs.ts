import { AppError } from "../domain/app-error.ts";
import type { ChatMessage, ContentPart } from "../domain/conversation.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { FileInput } from "../storage/file-input.ts";
import { refusal } from "./chat-tools.ts";
import type { InputPart, StoredItem } from "./responses-items.ts";

/** As much as may be sent inline. Characters of the data URL. */
const longestInput = 12_000_000;

/** Reads an uploaded file of the tenant. @throws {AppError} `not_found`, `request_too_large` */
export type ReadInputFile = (fileId: string) => Promise<Pick<FileInput, "filename" | "dataUrl">>;

export type FileInputs = (context: TenantContext, fileId: string) => Promise<FileInput>;

/** Uploaded files as parts of a call's input. @throws {AppError} `not_found`, `request_too_large` */
export const readerOf =
  (files: FileInputs, context: TenantContext): ReadInputFile =>
  async (fileId) => {
    const file = await files(context, fileId);
    if (file.dataUrl.length > longestInput)
      throw new AppError("request_too_large", {
        client: { message: "The file is too large to be an input: 9 MB at most.", param: "file_id" },
      });
    return file;
  };

/** Messages with the bytes of the files that they name. */
export async function inlineFiles(messages: readonly ChatMessage[], read: ReadInputFile): Promise<readonly ChatMessage[]> {
  const inPart = async (part: ContentPart): Promise<ContentPart> => {
    if (part.type !== "file" || !("id" in part.file)) return part;
    const { filename, dataUrl } = await read(part.file.id);
    return { ...part, name: part.name ?? filename, file: { data: dataUrl } };
  };
  return await Promise.all(
    messages.map(async (message) => {
      if ((message.role !== "user" && message.role !== "tool") || typeof message.content === "string") return message;
      return { ...message, content: await Promise.all(message.content.map(inPart)) };
    }),
  );
}

/** Items with the bytes of the images that they name. @throws {AppError} `invalid_request` for a file that is no image */
export async function inlineImages(items: readonly StoredItem[], read: ReadInputFile): Promise<readonly StoredItem[]> {
  const inPart = async (part: InputPart): Promise<InputPart> =>
    part.type === "input_image" && part.file_id != null ? { ...part, file_id: null, image_url: await imageOf(part.file_id, read) } : part;
  const inParts = async (content: string | readonly InputPart[]): Promise<string | InputPart[]> =>
    typeof content === "string" ? content : await Promise.all(content.map(inPart));
  return await Promise.all(
    items.map(async (item) => {
      if (item.type === "message") return { ...item, content: await inParts(item.content) };
      return "output" in item ? { ...item, output: await inParts(item.output) } : item;
    }),
  );
}

/** What images begin with, as base64, by their type: a file's name and declared type may say anything. */
const imageBeginnings: Readonly<Record<string, RegExp>> = {
  "image/png": /^iVBORw0KGgo/,
  "image/jpeg": /^\/9j\//,
  "image/gif": /^R0lGODlh|^R0lGODdh/,
  "image/webp": /^UklGR[A-Za-z0-9+/]{6}XRUJQ/,
};

async function imageOf(fileId: string, read: ReadInputFile): Promise<string> {
  const { dataUrl } = await read(fileId);
  const base64 = dataUrl.slice(dataUrl.indexOf(",") + 1);
  const [type] = Object.entries(imageBeginnings).find(([, beginning]) => beginning.test(base64)) ?? [];
  if (type === undefined) throw refusal("The file is no PNG, JPEG, GIF or WebP image.", "file_id");
  return `data:${type};base64,${base64}`;
}
