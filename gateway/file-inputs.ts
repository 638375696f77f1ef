import { AppError } from "../domain/app-error.ts";
import type { ChatMessage, ContentPart } from "../domain/conversation.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { FileInput } from "../storage/file-input.ts";

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
