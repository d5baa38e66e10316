// Settings of the answers: only what the reader set is sent; the server's defaults hold for the rest.
import { byId, h, prefs, toast } from "./dom.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 5, step: 0.05, hint: "0 always takes the likeliest token" },
  { name: "top_p", label: "Top-p", min: 0, max: 1, step: 0.01, hint: "Smallest set of tokens with this probability" },
  { name: "top_k", label: "Top-k", min: 0, step: 1, hint: "This many likeliest tokens; 0 for all" },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, hint: "At least this share of the likeliest token" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.1, max: 10, step: 0.05, hint: "1 is none" },
  { name: "max_tokens", label: "Most tokens", min: 1, step: 1, hint: "The answer's length at most" },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "The same seed draws the same tokens" },
];

function read() {
  try {
    const value = JSON.parse(prefs.get("settings") ?? "{}");
    // What was stored may be from another version of the page: all of it is readable, or none of it counts.
    if (value?.schema) JSON.parse(value.schema);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}

/** The fields that the settings add to a request. */
export function requestFields() {
  const settings = read();
  const fields = {};
  for (const { name } of NUMBERS) if (Number.isFinite(settings[name])) fields[name] = settings[name];
  if (typeof settings.enable_thinking === "boolean") fields.enable_thinking = settings.enable_thinking;
  if (settings.schema) {
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: JSON.parse(settings.schema) } };
  }
  return fields;
}

export const defaultSystem = () => prefs.get("system") ?? "";

/** How many settings differ from the server's defaults, for the button's mark. */
export function countSet() {
  return Object.keys(requestFields()).length;
}

function problem(id, text) {
  byId(`${id}-problem`).textContent = text;
  if (text) byId(id).setAttribute("aria-invalid", "true");
  else byId(id).removeAttribute("aria-invalid");
}

function readNumber({ name, label, min, max, step }) {
  const input = byId(`set-${name}`);
  const allowed = max === undefined ? `${min} or more` : `${min} to ${max}`;
  const value = input.valueAsNumber;
  let text = "";
  if (input.validity.badInput) text = `${label} must be a number, ${allowed}.`;
  else if (input.value !== "" && (value < min || value > (max ?? Number.MAX_SAFE_INTEGER))) text = `${label} must be ${allowed}.`;
  else if (input.value !== "" && step === 1 && !Number.isInteger(value)) text = `${label} must be a whole number.`;
  problem(`set-${name}`, text);
  return text ? null : { value: input.value === "" ? undefined : value };
}

function readSchema() {
  const text = byId("set-schema").value.trim();
  let found = "";
  if (text) {
    try {
      const schema = JSON.parse(text);
      if (schema === null || typeof schema !== "object" || Array.isArray(schema)) found = "A JSON schema is an object.";
    } catch (error) {
      found = `This is not JSON: ${error.message}`;
    }
  }
  problem("set-schema", found);
  return found ? null : { value: text || undefined };
}

/** Wires the dialog up. `conversation` gives the open one, `saved` is told after a change. */
export function initSettings({ conversation, saved }) {
  const dialog = byId("settings");
  byId("number-settings").append(
    ...NUMBERS.map(({ name, label, min, max, step, hint }) =>
      h("div", { class: "field" },
        h("label", { for: `set-${name}` }, label),
        h("input", { id: `set-${name}`, type: "number", min, max, step: "any", inputmode: step === 1 ? "numeric" : "decimal", placeholder: "server's default", "aria-describedby": `set-${name}-hint set-${name}-problem`, autocomplete: "off" }),
        h("small", { id: `set-${name}-hint` }, hint),
        h("small", { id: `set-${name}-problem`, class: "problem", role: "alert" })),
    ),
  );
  const fill = (settings, system) => {
    for (const { name } of NUMBERS) {
      byId(`set-${name}`).value = settings[name] ?? "";
      problem(`set-${name}`, "");
    }
    byId("set-thinking").value = String(settings.enable_thinking ?? "");
    byId("set-schema").value = settings.schema ?? "";
    problem("set-schema", "");
    byId("set-system").value = system;
    byId("set-system-default").checked = false;
  };
  byId("open-settings").addEventListener("click", () => {
    fill(read(), conversation().system ?? "");
    dialog.showModal();
  });
  byId("settings-reset").addEventListener("click", () => fill({}, byId("set-system").value));
  byId("settings-cancel").addEventListener("click", () => dialog.close());
  byId("settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const results = NUMBERS.map((field) => [field.name, readNumber(field)]);
    results.push(["schema", readSchema()]);
    const wrong = results.find(([, result]) => result === null);
    if (wrong) return byId(`set-${wrong[0]}`).focus();
    const settings = Object.fromEntries(results.map(([name, result]) => [name, result.value]));
    const thinking = byId("set-thinking").value;
    if (thinking) settings.enable_thinking = thinking === "true";
    prefs.set("settings", JSON.stringify(settings));
    const system = byId("set-system").value;
    if (byId("set-system-default").checked) {
      prefs.set("system", system);
      toast("New conversations begin with this system prompt.");
    }
    dialog.close();
    saved(system);
  });
}
