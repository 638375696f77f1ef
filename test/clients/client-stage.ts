import { type RunningProduct, startProduct } from "../product.ts";
import { type SampleModel, startSampleModel } from "./sample-model.ts";

/** The whole product before a provider that answers as a model would, and a tenant whose token the clients are given. */
export type ClientStage = {
  readonly product: RunningProduct;
  readonly model: SampleModel;
  /** What goes into a client's base URL. */
  readonly baseUrl: string;
  readonly token: string;
  close(): Promise<void>;
};

const config = (url: string): string => `
default_model: sample
providers:
  local: { kind: openai-compatible, base_url: "${url}" }
  claude: { kind: anthropic, base_url: "${url}", api_key_env: SAMPLE_KEY }
models:
  sample: { provider: local, context_window: 100000, max_output_tokens: 4000 }
  other-sample: { provider: local, context_window: 100000, max_output_tokens: 4000 }
  claude: { provider: claude, context_window: 100000, max_output_tokens: 4000 }
billing:
  rate_card:
    sample: { input: 15, output: 75, cache_read: 1.50, reasoning: 75 }
    other-sample: { input: 1, output: 2 }
    claude: { input: 1, output: 2 }
`;

export async function startClientStage(): Promise<ClientStage> {
  const model = await startSampleModel();
  const product = await startProduct({ config: config(model.url), env: { SAMPLE_KEY: "sk-sample" } });
  return {
    product,
    model,
    baseUrl: `${product.url}/v1`,
    token: await product.createTenant("acme"),
    async close() {
      await product.stop();
      await model.close();
    },
  };
}
