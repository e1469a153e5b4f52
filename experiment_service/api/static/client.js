// Browser client of Experiment Service: asks for carousels, tells what shoppers did.
//
//   import { ExperimentClient } from "https://shop.example/client.js";
//   const client = new ExperimentClient({ address: "https://shop.example" });
//   client.mount(document.querySelector("#home"), { placement: "home", k: 10, render });
//
// Nothing here throws at the page: without the service the page keeps what it shows.
// Every event has an id from birth and waits in a bounded queue in localStorage until the
// service has it; whatever is sent twice counts once.

const BATCH = 50;
const MAX_RECENT = 20; // that the service takes
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 60_000;
// An event that waited longer tells when it happened; the service's clock does otherwise.
const FRESH_MS = 60_000;
const SEEN_SHARE = 0.5;
const SEEN_MS = 1000;
const STEPS = Array.from({ length: 21 }, (_, step) => step / 20);

export class ExperimentClient {
  // address    of the service, such as "https://shop.example"; "" for the page's own
  // unitId     the shopper; left out, an anonymous id is kept in localStorage
  // key        an API key that may recommend and send events
  // timeoutMs  after which the page goes on with its fallback
  // maxQueued  events kept while the service does not answer; the oldest go first
  constructor({ address = "", unitId, key, timeoutMs = 1000, maxQueued = 500 } = {}) {
    this.address = address.replace(/\/+$/, "");
    this.key = key;
    this.timeoutMs = timeoutMs;
    this.store = new Store(`experiment-service:${this.address}`);
    this.unitId = unitId ?? this.store.anonymousId();
    this.queue = new Queue(this, maxQueued);
  }

  // Fetch a carousel. Resolves to null when the service does not answer in time.
  // itemId         the item of the page
  // recentItemIds  what the shopper looked at or has in the cart, the latest last
  async recommend({ placement, k = 10, itemId, recentItemIds, exclude, attributes }) {
    try {
      const response = await this.post(
        "/v1/recommendations",
        {
          unit_id: this.unitId,
          placement,
          k,
          item_id: itemId,
          recent_item_ids: recentItemIds?.slice(-MAX_RECENT),
          exclude_item_ids: exclude,
          attributes,
        },
        { signal: AbortSignal.timeout(this.timeoutMs) },
      );
      return response.ok ? new Carousel(this, await response.json()) : null;
    } catch {
      return null;
    }
  }

  // Fill an element with a carousel and watch it. `render(element, carousel)` draws it;
  // elements with data-item-id are its items, those with data-add-to-cart put theirs into
  // the cart. Without an answer the element stays as it is and null comes back.
  async mount(element, { render, ...request }) {
    const carousel = await this.recommend(request);
    if (carousel === null) return null;
    render(element, carousel);
    carousel.watch(element);
    return carousel;
  }

  // Tell what the shopper did, such as "purchase"; the id makes a repetition count once.
  track(kind, { id, exposureId, itemId, category, placement, position, value } = {}) {
    this.queue.push({
      id: id ?? timedId(Date.now() + this.queue.offset),
      kind,
      unit_id: this.unitId,
      exposure_id: exposureId ?? undefined,
      item_id: itemId,
      category,
      placement,
      position,
      value,
    });
  }

  post(path, document, options = {}) {
    const headers = { "content-type": "application/json" };
    if (this.key) headers["x-api-key"] = this.key;
    return fetch(this.address + path, {
      method: "POST",
      headers,
      body: JSON.stringify(document),
      ...options,
    });
  }
}

// Items in order, with the settings of the variant that chose them.
class Carousel {
  constructor(client, answer) {
    this.client = client;
    this.items = answer.items.map((item) => item.item_id);
    this.settings = answer.settings;
    this.experiment = answer.experiment;
    this.variant = answer.variant;
    this.exposureId = answer.exposure_id;
  }

  // Tell once when half of it was in sight for a second, and every click on an item.
  watch(element) {
    if (this.exposureId === null) return;
    whenSeen(element, () =>
      this.client.track("viewed", {
        id: `${this.exposureId}:viewed`,
        exposureId: this.exposureId,
      }),
    );
    element.addEventListener("click", (event) => {
      const item = event.target.closest?.("[data-item-id]");
      if (!item || !element.contains(item)) return;
      const inCart = event.target.closest("[data-add-to-cart]");
      this.track(inCart ? "add_to_cart" : "click", item.dataset.itemId, {
        category: item.dataset.category,
      });
    });
  }

  // Tell what the shopper did with an item of it.
  track(kind, itemId, { category, value } = {}) {
    const index = this.items.indexOf(itemId);
    this.client.track(kind, {
      exposureId: this.exposureId,
      itemId,
      category,
      position: index < 0 ? undefined : index + 1,
      value,
    });
  }
}

// Call back once when half of an element, or as much of it as fills half of the window,
// was in sight for a second on end, in a tab that is in sight itself.
function whenSeen(element, callback) {
  let timer = null;
  let inSight = false;
  const update = () => {
    if (inSight && document.visibilityState === "visible") {
      timer ??= setTimeout(finish, SEEN_MS);
    } else {
      clearTimeout(timer);
      timer = null;
    }
  };
  const finish = () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", update);
    callback();
  };
  const observer = new IntersectionObserver((entries) => {
    const { intersectionRatio, intersectionRect, rootBounds } = entries.at(-1);
    const filled = rootBounds ? intersectionRect.height / rootBounds.height : 0;
    inSight = intersectionRatio >= SEEN_SHARE || filled >= SEEN_SHARE;
    update();
  }, { threshold: STEPS });
  observer.observe(element);
  document.addEventListener("visibilitychange", update);
}

// Events that the service does not have yet, in localStorage: they outlive the page.
class Queue {
  constructor(client, limit) {
    this.client = client;
    this.limit = limit;
    this.pause = FIRST_PAUSE_MS;
    this.timer = null;
    this.notBefore = 0;
    this.sending = false;
    this.offset = 0; // of the service's clock, milliseconds
    addEventListener("online", () => {
      this.notBefore = 0;
      this.sendSoon();
    });
    addEventListener("pagehide", () => this.sendLast());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.sendLast();
    });
    if (this.waiting().length) this.sendSoon(); // left by an earlier page
  }

  waiting() {
    return this.client.store.events();
  }

  push(event) {
    const waiting = this.waiting().filter((other) => other.id !== event.id);
    waiting.push({ ...event, at: Date.now() });
    this.client.store.keep(waiting.slice(-this.limit));
    this.sendSoon();
  }

  sendSoon() {
    if (this.sending) return;
    clearTimeout(this.timer);
    const wait = Math.max(0, this.notBefore - Date.now());
    this.timer = setTimeout(() => this.send(), wait);
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    try {
      while (this.waiting().length && (await this.sendBatch()));
    } finally {
      this.sending = false;
    }
    if (this.waiting().length) this.sendSoon();
  }

  // Send the oldest events; false when they have to be sent again later.
  async sendBatch() {
    const batch = this.waiting().slice(0, BATCH);
    let response = null;
    try {
      response = await this.client.post("/v1/interactions", this.document(batch), {
        signal: AbortSignal.timeout(10_000),
        keepalive: true,
      });
    } catch {
      // No answer: the events may have arrived; the same ids make that harmless.
    }
    // Those refused would be so however often they come.
    if (!response?.ok && ![400, 413, 415, 422].includes(response?.status)) {
      this.backOff(response);
      return false;
    }
    this.pause = FIRST_PAUSE_MS;
    this.readClock(response);
    const done = new Set(batch.map((event) => event.id));
    this.client.store.keep(this.waiting().filter((event) => !done.has(event.id)));
    return true;
  }

  backOff(response) {
    const asked = 1000 * Number(response?.headers.get("retry-after") ?? 0) || 0;
    const wait = Math.max(asked, this.pause * (0.5 + Math.random()));
    this.notBefore = Date.now() + wait;
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
  }

  // The page may be gone before an answer: hand over what waits and keep it. The next
  // page sends it again, which counts once.
  sendLast() {
    const waiting = this.waiting().slice(-BATCH);
    if (!waiting.length) return;
    const document = this.document(waiting);
    if (this.client.key) {
      // A beacon carries no key.
      this.client.post("/v1/interactions", document, { keepalive: true }).catch(() => {});
      return;
    }
    const type = "application/json";
    const body = new Blob([JSON.stringify(document)], { type });
    navigator.sendBeacon(`${this.client.address}/v1/interactions`, body);
  }

  document(events) {
    const now = Date.now();
    return {
      interactions: events.map(({ at, ...event }) =>
        now - at < FRESH_MS
          ? event
          : { ...event, occurred_at: new Date(at + this.offset).toISOString() },
      ),
    };
  }

  readClock(response) {
    const told = Date.parse(response.headers.get("date") ?? "");
    if (!Number.isNaN(told)) this.offset = told - Date.now();
  }
}

// What outlives the page; in memory where localStorage is forbidden or full.
class Store {
  constructor(prefix) {
    this.queueKey = `${prefix}:queue`;
    this.unitKey = `${prefix}:unit`;
    this.memory = new Map();
  }

  events() {
    try {
      const found = JSON.parse(this.read(this.queueKey) ?? "[]");
      return Array.isArray(found) ? found.filter((event) => event?.id) : [];
    } catch {
      return [];
    }
  }

  keep(events) {
    this.write(this.queueKey, JSON.stringify(events));
  }

  anonymousId() {
    const known = this.read(this.unitKey);
    if (known) return known;
    const made = `anonymous-${randomId()}`;
    this.write(this.unitKey, made);
    return made;
  }

  read(key) {
    if (this.memory.has(key)) return this.memory.get(key);
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  }

  write(key, text) {
    try {
      localStorage.setItem(key, text);
      this.memory.delete(key);
    } catch {
      this.memory.set(key, text);
    }
  }
}

// A UUIDv7: the service keeps an event beside others of its month.
function timedId(at) {
  const digits = Math.round(at).toString(16).padStart(12, "0").slice(-12);
  const random = randomId();
  return [
    digits.slice(0, 8),
    digits.slice(8),
    `7${random.slice(0, 3)}`,
    `${"89ab"[parseInt(random[3], 16) % 4]}${random.slice(4, 7)}`,
    random.slice(7, 19),
  ].join("-");
}

// 128 random bits; crypto.randomUUID is missing on pages without TLS.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
