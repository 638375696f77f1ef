#!/bin/sh
# Runs once, as the server's superuser, when the data volume is empty. Two owners that are not superusers: openclaw's may make
# the tenants' roles and schemas in its own database, Temporal's owns its two databases; neither can read the other's.
set -eu

psql --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv openclaw_password OPENCLAW_DB_PASSWORD
\getenv temporal_password TEMPORAL_DB_PASSWORD
create role openclaw login nosuperuser createrole nocreatedb password :'openclaw_password';
create role temporal login nosuperuser nocreaterole nocreatedb password :'temporal_password';
create database openclaw owner openclaw;
create database temporal owner temporal;
create database temporal_visibility owner temporal;
revoke connect, temporary on database openclaw, temporal, temporal_visibility from public;
SQL

# pgvector is not a trusted extension: only a superuser may add it.
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname openclaw <<'SQL'
create schema extensions;
grant usage on schema extensions to public;
create extension vector schema extensions;
SQL
