// Shows the document of all routes. `url` is the service's own: nothing comes from elsewhere.
"use strict";

globalThis.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [globalThis.SwaggerUIBundle.presets.apis],
});
