import { AppError } from "../domain/app-error.ts";
import { readEnvironment } from "../control-plane/environment.ts";
import { printReady, printStartFailure } from "./console-output.ts";
import { parseStartArguments } from "./start-arguments.ts";
import { type StopMode, startProduct } from "./product.ts";

/** Exit statuses of contract §9. */
const exitFailed = 1;
const exitUsage = 2;
const exitRefused = 4;
/** What does not stop in this time is left to the operating system. */
const stopDeadlineMs = 4_800;

/** The providers' SDKs read these by themselves; what is sent to a provider is the configuration's business alone. */
const sdkVariables = ["OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"];

async function main(): Promise<void> {
  const { role } = parseStartArguments(process.argv.slice(2));
  const variables = { ...process.env };
  for (const name of sdkVariables) delete process.env[name];
  const product = await startProduct(readEnvironment(variables), { role, variables });
  printReady(product.facts);

  let deadline: NodeJS.Timeout | undefined;
  const endWithin = (ms: number): void => {
    clearTimeout(deadline);
    deadline = setTimeout(() => process.exit(exitFailed), ms).unref();
  };
  const stop = (mode: StopMode): void => {
    const isStopping = deadline !== undefined;
    // Who asks twice does not want to wait.
    endWithin(stopDeadlineMs + (mode === "drain" && !isStopping ? product.drainMs : 0));
    if (isStopping) return;
    void product.stop(mode).then(
      () => process.exit(0),
      (error: unknown) => {
        printStartFailure(error);
        process.exit(exitFailed);
      },
    );
  };
  process.on("SIGINT", () => stop("now"));
  process.on("SIGTERM", () => stop("drain"));
}

try {
  await main();
} catch (error) {
  printStartFailure(error);
  const code = error instanceof AppError ? error.code : undefined;
  process.exit(code === "conflict" ? exitRefused : code === "invalid_request" ? exitUsage : exitFailed);
}
