import { expect, test } from "vitest";
import { parseChatRequest } from "../../gateway/chat-request.ts";
import { AppError } from "../../domain/app-error.ts";

const refusalOf = (body: unknown): AppError => {
  try {
    parseChatRequest(body);
  } catch (error) {
    if (error instanceof AppError) return error;
    throw error;
  }
  throw new Error("it was accepted");
};

test("the first bad message is named, however many follow", () => {
  const messages = [{ role: "user", content: "hi" }, ...Array.from({ length: 9_000 }, () => 0)];

  const refusal = refusalOf({ model: "default", messages });

  expect(refusal.code).toBe("invalid_request");
  expect(refusal.client.param).toBe("messages.1");
});

test("a tool that must be called needs tools to choose from", () => {
  const ask = { model: "default", messages: [{ role: "user", content: "hi" }] };

  expect(refusalOf({ ...ask, tool_choice: "required" }).client.param).toBe("tool_choice");
  expect(refusalOf({ ...ask, tool_choice: { type: "function", function: { name: "exec" } } }).client.param).toBe("tool_choice");
  expect(parseChatRequest({ ...ask, tool_choice: "auto" }).settings.toolChoice).toBe("auto");
});
