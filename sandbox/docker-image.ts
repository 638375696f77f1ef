/** Why an image may not be named so, as a clause: what a name alone means may change from one run to the next. */
export const refuseImageName = (image: string): string | undefined =>
  /^([a-z0-9][a-zA-Z0-9._/:-]*@)?sha256:[0-9a-f]{64}$/.test(image)
    ? undefined
    : `the image ${JSON.stringify(image)} is named neither by its id (sha256:…) nor by its digest (name@sha256:…)`;
