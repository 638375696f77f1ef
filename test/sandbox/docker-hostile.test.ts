import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createDockerDriver } from "../../sandbox/docker-driver.ts";
import { type DockerStage, dockerMissing, inContainer, runtimeClasses, startDocker } from "./docker-stage.ts";
import { hostileCases, type HostileCase, type HostileVerdict } from "./hostile-cases.ts";
import { type HostileWorld, inTurns, runInside, setHostileWorld } from "./hostile-world.ts";
import { missing, type Stage, setStage, variants } from "./sandbox-stage.ts";

const titleOf = ({ area, name }: Pick<HostileCase, "area" | "name">): string => `${area}: ${name}`;
const isSkipped = dockerMissing !== undefined || missing !== undefined || process.env["OPENCLAW_TEST_FULL"] === undefined;
if (process.env["OPENCLAW_TEST_FULL"] === undefined)
  console.warn("SKIPPED the hostile suite in containers: it is part of npm run test:full");

let daemon: DockerStage | undefined;
beforeAll(async () => {
  if (!isSkipped) daemon = await startDocker();
}, 600_000);
afterAll(async () => await daemon?.tearDown(), 120_000);

describe.skipIf(isSkipped).each(runtimeClasses)("every attack is held in a container of %s", (runtimeClass) => {
  let stage: Stage;
  let planted: HostileWorld | undefined;
  const driver = () => {
    const { socketPath, imageId } = daemon as DockerStage;
    return inContainer(createDockerDriver({ socketPath }), { image: imageId, runtimeClass });
  };
  beforeAll(async () => (stage = await setStage(variants[0] as (typeof variants)[number])));
  afterAll(async () => await stage.tearDown());

  test("all cases", { timeout: 1_500_000 }, async () => {
    const contained = driver();
    planted = await setHostileWorld({ ...stage, driver: contained });
    try {
      const cases = hostileCases(planted).filter(({ asksHostKernel }) => runtimeClass === "runc" || asksHostKernel === undefined);
      const judged: HostileVerdict[] = await inTurns(cases, (one) => runInside({ ...stage, driver: contained }, one));
      const fallen = judged.flatMap(({ ran, held, broken, said }, index) =>
        ran && held && !broken ? [] : [`${titleOf(cases[index] as HostileCase)}: ran ${ran}, held ${held}, broken ${broken}; ${said}`],
      );

      expect(cases.length).toBeGreaterThanOrEqual(100);
      expect(fallen).toEqual([]);
    } finally {
      await planted.tearDown();
      await contained.dispose();
    }
  });
});
