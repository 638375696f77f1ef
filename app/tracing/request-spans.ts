import { ROOT_CONTEXT, SpanKind, SpanStatusCode, defaultTextMapGetter, trace } from "@opentelemetry/api";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import type { RequestTracing } from "../../gateway/request-tracing.ts";
import type { SpanSource } from "./span-source.ts";

/** A server span for each request, in its caller's trace where the request names one. */
export const createRequestSpans = (spans: SpanSource): RequestTracing => {
  const propagator = new W3CTraceContextPropagator();
  return {
    began({ method, route, headers }) {
      const parent = trace.getSpanContext(propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter));
      const span = spans.start(`${method} ${route}`, {
        kind: SpanKind.SERVER,
        attributes: { "http.request.method": method, "http.route": route },
        ...(parent === undefined ? {} : { parent }),
      });
      return {
        run: (work) => spans.run(span, work),
        end({ status, tenantId }) {
          span.setAttribute("http.response.status_code", status);
          if (tenantId !== undefined) span.setAttribute("openclaw.tenant.id", tenantId);
          if (status >= 500) span.setStatus({ code: SpanStatusCode.ERROR });
          span.end();
        },
      };
    },
  };
};
