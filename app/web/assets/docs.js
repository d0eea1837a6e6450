// Shows the OpenAPI document. Relative, because a proxy may serve the page under a path.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true });
