// Opens the page in headless Chromium, before a real cluster, and does what an operator does: looks, enters the token,
// drains, kills, filters and switches over. tests/failover/page.rs starts it; scripts/ui has the tools.
//
// PAGE_URL, PAGE_TOKEN: the router's. PAGE_SCREENSHOTS=DIR keeps pictures there. CHROMIUM names another program.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { PAGE_URL, PAGE_TOKEN, PAGE_SCREENSHOTS, CHROMIUM = "/usr/bin/chromium" } = process.env;
assert(PAGE_URL && PAGE_TOKEN, "PAGE_URL and PAGE_TOKEN are needed");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const WIDE = { width: 1360, height: 850 }, PHONE = { width: 390, height: 844 };

const profile = mkdtempSync(join(tmpdir(), "tl-page-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: CHROMIUM, headless: true, viewport: WIDE, colorScheme: "light", reducedMotion: "reduce", timezoneId: "UTC", timeout: 60_000,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-lcd-text"],
});
const page = context.pages()[0] ?? await context.newPage();
page.setDefaultTimeout(20_000);

const faults = [], elsewhere = [];
let isOffline = false, isFull = false;
page.on("pageerror", (error) => faults.push(String(error)));
page.on("console", (message) => {
  const { url } = message.location();
  if (isFull && message.text().includes("503")) return;
  if (message.type() !== "error" || (isOffline && message.text().includes("ERR_INTERNET_DISCONNECTED"))) return;
  faults.push(`${message.text()} (${url})`);
});
page.on("request", (request) => {
  if (new URL(request.url()).origin !== new URL(PAGE_URL).origin) elsewhere.push(request.url());
});

const begun = Date.now();
const step = (what) => console.log(`${((Date.now() - begun) / 1000).toFixed(1)} s: ${what}`);
/** Waits until a function of the page says so. */
const until = async (what, condition, argument) => {
  try {
    await page.waitForFunction(condition, argument, { polling: 50 });
  } catch (error) {
    throw new Error(`${what}: ${error}\nverdict: ${await page.textContent("#verdict")}`);
  }
};
const verdict = (part) => until(`the verdict says ${part}`, (part) => document.querySelector("#verdict")?.textContent?.includes(part), part);
const card = (name) => page.locator(`.member[data-member="${name}"]`);
const shot = async (name, options = {}) => {
  if (PAGE_SCREENSHOTS) await page.screenshot({ path: join(PAGE_SCREENSHOTS, `${name}.png`), animations: "disabled", ...options });
};

/** Presses Tab until the focus is on what has this name. */
async function tabTo(name) {
  for (let presses = 0; presses < 400; presses += 1) {
    const has = await page.evaluate((name) => {
      const { activeElement: element } = document;
      return element !== null && (element.getAttribute("aria-label") ?? element.textContent ?? "").trim() === name;
    }, name);
    if (has) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`the keyboard does not reach ${name}`);
}

async function audit(what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const grave = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  assert.deepEqual(grave.map(({ id, nodes }) => [id, nodes.slice(0, 3).map(({ target, failureSummary }) => `${target}: ${failureSummary}`)]), [], what);
}

/** What cannot be reached: the page does not scroll sideways, and what is wider than its box scrolls, by keyboard too. */
function unreachable() {
  const { documentElement: root } = document;
  const found = root.scrollWidth > root.clientWidth ? [`the page: ${root.scrollWidth} in ${root.clientWidth}`] : [];
  const name = (element) => `${element.closest("section")?.id ?? "top"} ${element.tagName}.${element.className}`;
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("svg, .hidden, .skip, .lanes, thead") || getComputedStyle(element).display === "inline") continue;
    for (const [inner, outer, overflow] of [
      [element.scrollWidth, element.clientWidth, getComputedStyle(element).overflowX],
      [element.scrollHeight, element.clientHeight, getComputedStyle(element).overflowY],
    ]) {
      if (!outer || inner <= outer + 1 || overflow === "visible") continue;
      const canFocus = element.tabIndex >= 0 || element.querySelector("a, button, input");
      if (!["auto", "scroll"].includes(overflow) || !canFocus) found.push(`${name(element)}: ${inner} in ${outer}`);
    }
    // What hangs out of its panel, where nothing scrolls.
    const box = element.getBoundingClientRect();
    const scroller = element.closest(".scroll, nav ul, .verdict ul");
    const panel = element.closest("section, header");
    if (panel && !scroller && box.width && box.right > panel.getBoundingClientRect().right + 1) found.push(`${name(element)}: out of its panel`);
  }
  for (const scroller of document.querySelectorAll(".scroll")) {
    scroller.scrollLeft = scroller.scrollWidth;
    const { right } = scroller.getBoundingClientRect();
    const cells = [...scroller.querySelectorAll("tbody th, tbody td")].map((cell) => cell.getBoundingClientRect()).filter((box) => box.width);
    if (cells.some((box) => box.right > right + 1)) found.push(`${name(scroller)}: its last column cannot be scrolled to`);
    scroller.scrollLeft = 0;
  }
  return found;
}

async function auditAll(what) {
  for (const width of [360, 768, 1400, 1920]) {
    await page.setViewportSize({ width, height: 844 });
    assert.deepEqual(await page.evaluate(unreachable), [], `${what}, ${width} px wide`);
  }
  for (const [size, viewport] of [["wide", WIDE], ["phone", PHONE]]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize(viewport);
      await page.emulateMedia({ colorScheme });
      await audit(`${what}, ${size}, ${colorScheme}`);
    }
  }
  await page.setViewportSize(WIDE);
  await page.emulateMedia({ colorScheme: "light" });
}

/** What a screen reader says of the headline. */
const announced = () => page.textContent("#announced");

try {
  // Before there is data, no number is shown.
  let letGo;
  const held = new Promise((done) => { letGo = done; });
  await page.route("**/api/**", async (route) => {
    await held;
    await route.continue();
  });
  let encoding;
  page.on("response", (answer) => { if (answer.url().endsWith("/ui/page.js")) encoding = answer.headers()["content-encoding"]; });
  const response = await page.goto(PAGE_URL);
  assert.match(response.headers()["content-security-policy"], /default-src 'none'/);
  await verdict("Waiting for the router");
  assert.doesNotMatch(await page.textContent("body"), /\d sessions|All is well/);
  await audit("before there is data");
  letGo();
  await verdict("All is well");
  await page.unrouteAll({ behavior: "ignoreErrors" });
  assert.equal(encoding, "gzip");
  assert.doesNotMatch(await page.textContent("main"), /\b0 sessions\b/);
  await page.evaluate(() => { globalThis.isTheSame = true; });
  const leader = await page.locator(".member.leader strong").first().textContent();
  const members = await page.locator(".member").evaluateAll((all) => all.map((card) => card.dataset.member));
  const candidate = members.find((name) => name !== leader);
  await verdict(`${leader} leads`);
  assert.match(await card(leader).textContent(), /★ leader.*UP.*timeline.*L7OK/s);
  await until("the port leads to the leader", (leader) => document.querySelector('.port[data-route="read-write"]').dataset.to === leader, leader);
  await until("there are sessions", () => document.querySelectorAll("#sessions tbody tr").length > 0);
  assert.equal(await page.locator(".member button, #sessions tbody button").count(), 0, "no orders without the token");
  step(`it shows ${members.join(", ")}, led by ${leader}`);

  // By keyboard only.
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "To the cluster");
  await tabTo("Enter the token…");
  await page.keyboard.press("Enter");
  await until("the field has the focus", () => document.activeElement.id === "token");
  await page.keyboard.type("not-the-token-of-it");
  await page.keyboard.press("Enter");
  await until("a wrong token is refused", () => document.querySelector(".token [role=alert]")?.textContent.includes("does not accept"));
  await tabTo("Enter the token…");
  await page.keyboard.press("Enter");
  await until("the field has the focus", () => document.activeElement.id === "token");
  await page.keyboard.type(PAGE_TOKEN);
  await page.keyboard.press("Enter");
  await until("orders are on", () => document.querySelectorAll(".member button").length > 0);
  const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie, location.href]);
  assert.deepEqual(kept, [0, 0, "", PAGE_URL], "the token is nowhere but in memory");
  assert.deepEqual(await context.cookies(), []);
  step("the token");

  await page.getByRole("button", { name: `weight of ${candidate}` }).click();
  await page.fill("dialog input", "257");
  await page.keyboard.press("Enter");
  await until("a weight out of range is refused", () => document.querySelector("dialog [role=alert]")?.textContent.includes("whole number from 0 to 256"));
  await audit("a refused weight");
  await page.keyboard.press("Escape");

  await tabTo(`drain ${candidate}`);
  await page.keyboard.press("Enter");
  await until("it asks first", () => document.querySelector("dialog[open] .main") === document.activeElement);
  await page.keyboard.press("Escape");
  await until("Escape closes it", () => !document.querySelector("dialog[open]"));
  assert.match(await card(candidate).textContent(), /UP/);
  await tabTo(`drain ${candidate}`);
  await page.keyboard.press("Enter");
  await until("it asks again", () => document.querySelector("dialog[open] .main") === document.activeElement);
  await page.keyboard.press("Enter");
  await until("it is drained", (name) => document.querySelector(`.member[data-member="${name}"] .status`).textContent.includes("DRAIN"), candidate);
  await verdict(`${candidate} is drained, since `);
  await until("the answer is told", (name) => document.querySelector(".notice")?.textContent.includes(`${name} is drained`), candidate);
  assert.match(await announced(), new RegExp(`^${candidate} is drained`));
  await page.getByRole("button", { name: `ready: ${candidate}` }).click();
  await until("it is back", (name) => document.querySelector(`.member[data-member="${name}"] .status`).textContent.includes("UP"), candidate);
  await until("the event is there", () => document.querySelector("#events").textContent.includes("drain"));
  step("drained and back");

  await page.fill("#session-filter", "no such session");
  await until("nothing is found", () => document.querySelector("#sessions .empty"));
  await page.fill("#session-filter", "read-write");
  await until("sessions are found", () => document.querySelectorAll("#sessions tbody tr").length > 0);
  const killed = await page.locator("#sessions tbody tr th").first().textContent();
  await page.getByRole("button", { name: `kill session ${killed}`, exact: true }).click();
  await page.getByRole("button", { name: "End it now" }).click();
  await until("the session is gone", (number) => [...document.querySelectorAll("#sessions tbody th")].every((cell) => cell.textContent !== number), killed);
  await until("the event is there", (number) => document.querySelector("#events").textContent.includes(`session=${number}`) || document.querySelector("#events").textContent.includes(`session ${number}`), killed);
  await page.fill("#session-filter", "");
  step("filtered and killed");

  // What a client calls itself is text.
  const evil = "<img src=x onerror=globalThis.isHacked=1>";
  await page.route("**/api/v1/sessions?**", async (route) => {
    const answer = await route.fetch();
    const sessions = await answer.json();
    for (const session of sessions) session.user = evil;
    await route.fulfill({ response: answer, json: sessions });
  });
  await until("the name is shown as it is", (evil) => document.querySelector("#sessions tbody").textContent.includes(evil), evil);
  await page.unroute("**/api/v1/sessions?**");
  assert.equal(await page.evaluate(() => globalThis.isHacked), undefined);
  assert.equal(await page.locator("main img").count(), 0);
  step("names are text");

  await until("ports are shown", () => /:6432/.test(document.querySelector('.port[data-route="read-write"]').textContent));
  await until("certificates are shown", () => document.querySelectorAll("#certificates tbody tr").length > 0);
  await until("the configuration is shown", () => document.querySelector("#configuration tbody")?.textContent.includes("token_file"));
  await until("there are charts", () => document.querySelectorAll(".chart").length > 4);
  await auditAll("the page");
  step("no serious findings, light and dark, phone and wide");

  if (PAGE_SCREENSHOTS) {
    await page.mouse.move(0, 0);
    await page.evaluate(() => scrollTo(0, 0));
    await shot("page");
    await page.setViewportSize(PHONE);
    await page.emulateMedia({ colorScheme: "dark" });
    await shot("page-phone");
    await page.setViewportSize(WIDE);
    await page.emulateMedia({ colorScheme: "light" });
    await page.evaluate(() => document.querySelector("#charts").scrollIntoView());
    await page.waitForFunction(() => document.querySelector("#charts").getBoundingClientRect().top < 200);
    await shot("page-charts");
    await page.evaluate(() => scrollTo(0, 0));
    await page.emulateMedia({ colorScheme: "dark" });
  }

  // Nobody can write: that comes first, in the same words as `trunkline status` has.
  await page.getByRole("button", { name: "pause read-write", exact: true }).click();
  await page.locator("dialog").getByRole("button", { name: "Pause read-write", exact: true }).click();
  await verdict("Nobody can write through route read-write, since ");
  await until("it is told what came of it", () => document.querySelector(".notice")?.textContent.includes("Route read-write is paused"));
  const said = await announced();
  await page.waitForFunction((before) => document.querySelector("#verdict").textContent !== before, await page.textContent("#verdict"));
  assert.equal(await announced(), said, "not each second again");
  await auditAll("a pause");
  await page.getByRole("button", { name: "unpause read-write", exact: true }).click();
  await verdict("All is well");
  step("paused and back");

  await page.getByRole("button", { name: `make leader: ${candidate}` }).click();
  await until("the plan is shown", () => document.querySelector("dialog[open]")?.textContent.includes("are held"));
  await audit("the plan");
  // A switchover lasts some seconds. On a busy machine one question may take longer, so the page itself notes what it showed.
  await page.evaluate(() => {
    const seen = globalThis.seen = {};
    new MutationObserver(() => {
      const verdict = document.querySelector("#verdict");
      if (document.querySelector(".port .tag")?.textContent.includes("held")) seen.isHeld = true;
      if (document.querySelector(".steps ol li")) seen.steps = [document.querySelector(".steps").textContent, document.querySelector(".steps ol").textContent];
      if (!verdict?.textContent.includes("Nobody can write through route read-write")) return;
      seen.header = document.querySelector("header").textContent;
      seen.command = verdict.querySelector("code")?.textContent ?? seen.command;
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
  });
  await page.locator("dialog").getByRole("button", { name: `Switch over to ${candidate}` }).click();
  await until("clients are held", () => globalThis.seen.isHeld);
  await until("the verdict says that nobody can write, and how to end that", () => globalThis.seen.command);
  await until("its steps are shown", () => globalThis.seen.steps);
  await page.evaluate(() => scrollTo(0, 0));
  await shot("page-switchover");
  const { command, header, steps: [steps, list] } = await page.evaluate(() => globalThis.seen);
  assert.equal(command, "trunkline switchover --abort", "a command looks like one");
  assert.doesNotMatch(header + steps, /Ctrl-C|`/, "no words of a terminal");
  assert.doesNotMatch(list, /session \d/, "sessions are no steps");
  step("clients are held");
  await page.waitForFunction((name) => document.querySelector(".member.leader")?.dataset.member === name, candidate, { timeout: 60_000, polling: 50 });
  await until("the port leads there", (name) => document.querySelector('.port[data-route="read-write"]').dataset.to === name, candidate);
  await until("nobody is held", () => !document.querySelector(".port .tag"));
  await until("it is in the timeline", (name) => document.querySelector("#holds tbody").textContent.includes(`${name} leads`), candidate);
  await page.waitForFunction(() => document.querySelector("#verdict").textContent.includes("All is well"), null, { timeout: 60_000 });
  await verdict(`${candidate} leads`);
  assert.equal(await page.evaluate(() => globalThis.isTheSame), true, "without a reload");
  step(`${candidate} leads`);

  isOffline = true;
  await page.route("**/api/**", (route) => route.abort("internetdisconnected"));
  await page.evaluate(() => [...document.querySelectorAll("button")].find((button) => button.textContent === "Forget the token").click());
  await verdict("No connection to the router");
  await until("how old the data is", () => / old/.test(document.querySelector("#verdict").textContent) && /the data is \d+ s old/.test(document.querySelector(".link").textContent));
  await audit("without a connection");
  await until("what is shown is grey", () => document.body.classList.contains("stale"));
  await page.unroute("**/api/**");
  await verdict("All is well");
  await until("and is not any more", () => !document.body.classList.contains("stale"));
  isOffline = false;
  assert.equal(await page.locator(".member button").count(), 0, "the token is forgotten");
  await page.reload();
  await verdict("All is well");
  assert.equal(await page.locator(".member button").count(), 0);
  step("lost and found again");

  // Somebody with the token needs the place: the page says so, and does not fight for it.
  let asked = 0;
  isFull = true;
  await page.route("**/api/v1/live", (route) => {
    asked += 1;
    return asked === 1
      ? route.fulfill({ contentType: "text/event-stream", body: `event: ended\ndata: ${JSON.stringify({ why: "somebody with the token needs one" })}\n\n` })
      : route.fulfill({ status: 503, headers: { "Retry-After": "30" }, json: { error: "64 readers are connected already", hint: "show the token" } });
  });
  await page.reload();
  await verdict("somebody with the token needs one. It tries again in 2");
  await audit("without a place");
  assert.equal(asked, 1);
  await page.unroute("**/api/v1/live");
  await tabTo("Enter the token…");
  await page.keyboard.press("Enter");
  await until("the field has the focus", () => document.activeElement.id === "token");
  await page.keyboard.type(PAGE_TOKEN);
  await page.keyboard.press("Enter");
  await verdict("All is well");
  await until("the token is accepted", () => document.querySelector(".notice")?.textContent.includes("accepts the token"));
  step("without a place, and in with the token");

  assert.deepEqual(faults, []);
  assert.deepEqual(elsewhere, []);
} catch (error) {
  if (process.env.PAGE_FAILED) await page.screenshot({ path: process.env.PAGE_FAILED, fullPage: true }).catch(() => {});
  console.error(faults);
  throw error;
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
