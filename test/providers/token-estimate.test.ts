import { expect, test } from "vitest";
import type { ContentPart } from "../../domain/conversation.ts";
import { estimatePromptTokens, estimateTokens } from "../../providers/token-estimate.ts";

// Counted with gpt-tokenizer 4.0.0, o200k_base.
test.each([
  [
    "English",
    46,
    "The quick brown fox jumps over the lazy dog. When in the course of human events it becomes necessary for one people to dissolve the political bands which have connected them with another, a decent respect requires that they should declare the causes.",
  ],
  ["digits", 42, "1234567890 3.14159265358979 2026-11-23T04:21:33.123Z 192.168.100.254 0x7fffffff"],
  [
    "German",
    29,
    "Wie viele Rechnungen sind überfällig, und welche müssen unverzüglich bezahlt werden? Bitte erstelle eine vollständige Übersicht für die Geschäftsführung.",
  ],
  ["Russian", 29, "Сколько счетов просрочено на сегодняшний день и какие из них требуют немедленной оплаты? Пожалуйста, составь список."],
  ["Chinese", 27, "今天有多少张发票逾期,哪些需要立即付款?请为管理层准备一份完整的清单。"],
  ["Japanese", 30, "本日期限を過ぎた請求書は何件ありますか。すぐに支払いが必要なものを一覧にしてください。"],
  ["Korean", 28, "오늘 연체된 청구서는 몇 건이며 즉시 지불해야 하는 것은 무엇입니까? 전체 목록을 준비해 주세요."],
  ["Arabic", 26, "كم عدد الفواتير المتأخرة اليوم وأيها يحتاج إلى دفع فوري؟ يرجى إعداد قائمة كاملة للإدارة."],
  ["Hindi", 25, "आज कितने बिल बकाया हैं और किनका तुरंत भुगतान करना आवश्यक है? कृपया पूरी सूची तैयार करें।"],
  ["emoji", 22, "👍🎉🔥😂 done ✅ 👩‍👩‍👧‍👦 🇩🇪"],
])("the estimate of %s is not below the tokenizer's count, nor twice as high", (_, counted, text) => {
  const estimate = estimateTokens("any", text);

  expect(estimate).toBeGreaterThanOrEqual(counted);
  expect(estimate).toBeLessThan(2 * counted);
});

test("nothing costs nothing", () => {
  expect(estimateTokens("any", "")).toBe(0);
});

test("a prompt counts its messages, tool calls, tools and images", () => {
  const perText = (): number => 10;
  const tools = [{ name: "exec" }];

  const plain = estimatePromptTokens(perText, { model: "m", messages: [{ role: "user", content: "Hi" }], tools: [] });
  const withTool = estimatePromptTokens(perText, { model: "m", messages: [{ role: "user", content: "Hi" }], tools });
  const withImage = estimatePromptTokens(perText, {
    model: "m",
    messages: [
      {
        role: "user",
        content: [
          { type: "text", text: "Hi" },
          { type: "image", url: "https://example.com/a.png" },
        ],
      },
    ],
    tools: [],
  });
  const withCall = estimatePromptTokens(perText, {
    model: "m",
    messages: [
      { role: "user", content: "Hi" },
      { role: "assistant", content: null, toolCalls: [{ id: "1", name: "exec", arguments: "{}" }] },
    ],
    tools: [],
  });

  expect(plain).toBe(3 + 4 + 10);
  expect(withTool).toBe(plain + 4 + 10);
  expect(withImage).toBe(plain + 765);
  expect(withCall).toBe(plain + 4 + 4 + 20);
});

test("a sound and a file count by their size, a text as text, and no document more than a window", () => {
  const tokensOf = (part: ContentPart) =>
    estimatePromptTokens(estimateTokens, { model: "m", messages: [{ role: "user", content: [part] }], tools: [] }) - (3 + 4);
  const file = (data: string): ContentPart => ({ type: "file", file: { data } });

  expect(tokensOf({ type: "audio", data: "A".repeat(16_000), format: "mp3" })).toBe(10); // a second
  expect(tokensOf(file(`data:text/plain;base64,${"A".repeat(4_977)}`))).toBe(1_000);
  expect(tokensOf(file("A".repeat(10_000)))).toBe(765 + 1_000);
  expect(tokensOf(file("A".repeat(10_000_000)))).toBe(765 + 200_000);
  expect(tokensOf({ type: "file", file: { url: "https://example.org/a.pdf" } })).toBe(765);
});
