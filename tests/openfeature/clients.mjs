// Evaluates flags with the official OpenFeature clients of server and web.
//
//   node clients.mjs ADDRESS REQUESTS
//
// REQUESTS is JSON: {server: [{key, context}], web: [context, ...]}. Prints JSON: what the
// clients made of each, and every answer that went over the wire.
import { OFREPProvider } from "@openfeature/ofrep-provider";
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";
import { OpenFeature as Server } from "@openfeature/server-sdk";
import { OpenFeature as Web } from "@openfeature/web-sdk";

const [address, requests] = process.argv.slice(2);
const { server, web } = JSON.parse(requests);
const CODE_DEFAULT = { from: "code" };
const wire = [];

async function recordingFetch(request) {
  const sent = { url: request.url, tag: request.headers.get("if-none-match") };
  const response = await fetch(request);
  const text = await response.clone().text();
  wire.push({
    ...sent,
    status: response.status,
    etag: response.headers.get("etag"),
    body: text ? JSON.parse(text) : null,
  });
  return response;
}
const options = { baseUrl: address, fetchImplementation: recordingFetch };

await Server.setProviderAndWait(new OFREPProvider(options));
const serverDetails = [];
for (const { key, context } of server) {
  serverDetails.push(
    await Server.getClient().getObjectDetails(key, CODE_DEFAULT, context),
  );
}

const provider = new OFREPWebProvider({ ...options, cacheMode: "disabled" });
const webDetails = [];
await Web.setContext(web[0]);
await Web.setProviderAndWait(provider);
for (const context of web) {
  await Web.setContext(context);
  const flags = {};
  for (const key of Object.keys(provider.flagCache)) {
    flags[key] = Web.getClient().getObjectDetails(key, CODE_DEFAULT);
  }
  webDetails.push(flags);
}
await Web.close();
await Server.close();
console.log(JSON.stringify({ server: serverDetails, web: webDetails, wire }));
