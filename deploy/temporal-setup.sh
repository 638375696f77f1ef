#!/bin/sh
# Makes the namespace, its retention and our search attributes; safe to repeat. Needs the temporal command line, TEMPORAL_ADDRESS
# and TEMPORAL_NAMESPACE. The retention is the shortest that keeps histories as the audit's second record.
set -eu

retention=720h

tries=0
until temporal operator cluster health --command-timeout 5s >/dev/null 2>&1; do
  tries=$((tries + 1))
  if [ "$tries" -ge 90 ]; then
    echo "Temporal at $TEMPORAL_ADDRESS does not answer." >&2
    exit 1
  fi
  sleep 1
done

if temporal operator namespace describe --namespace "$TEMPORAL_NAMESPACE" >/dev/null 2>&1; then
  temporal operator namespace update --namespace "$TEMPORAL_NAMESPACE" --retention "$retention"
else
  temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$retention"
fi

# A new namespace reaches the server's caches within seconds.
tries=0
until temporal operator search-attribute create --namespace "$TEMPORAL_NAMESPACE" \
  --name TenantId --type Keyword \
  --name Channel --type Keyword \
  --name TurnKind --type Keyword \
  --name SessionId --type KeywordList \
  --name TurnId --type KeywordList; do
  tries=$((tries + 1))
  if [ "$tries" -ge 30 ]; then
    exit 1
  fi
  sleep 1
done
echo "Temporal is ready for OpenClaw: namespace $TEMPORAL_NAMESPACE, retention $retention."
