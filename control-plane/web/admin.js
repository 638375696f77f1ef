/** @type {<T extends HTMLElement>(id: string) => T} */
const byId = (id) => /** @type {any} */ (document.getElementById(id));

const [door, room, actions, who] = [byId("door"), byId("room"), byId("actions"), byId("who")];
const keyInput = /** @type {HTMLInputElement} */ (byId("key"));
const enter = /** @type {HTMLButtonElement} */ (byId("enter"));

/** Where to go after the login: to the Web UI and nowhere else. */
function wantedPath() {
  const next = new URLSearchParams(location.search).get("next") ?? "";
  if (!URL.canParse(next, location.origin)) return undefined;
  const { origin, pathname, search, hash } = new URL(next, location.origin);
  const isOurs = origin === location.origin && (pathname === "/temporal" || pathname.startsWith("/temporal/"));
  return isOurs ? pathname + search + hash : undefined;
}

/** @param {string} problem */
function showDoor(problem = "") {
  room.hidden = actions.hidden = who.hidden = true;
  door.hidden = false;
  byId("key-error").textContent = problem;
  if (problem === "") keyInput.removeAttribute("aria-invalid");
  else keyInput.setAttribute("aria-invalid", "true");
  keyInput.focus();
}

/** @param {{ key_id: string, scopes: string[], expires_at: string }} session */
function showRoom({ key_id, scopes, expires_at }) {
  const path = wantedPath();
  if (path !== undefined) return location.replace(path);
  door.hidden = true;
  room.hidden = actions.hidden = who.hidden = false;
  who.textContent = key_id;
  byId("until").textContent = `Key ${key_id} (${scopes.join(", ")}), until ${new Date(expires_at).toLocaleString()}.`;
}

/** @param {string} key */
async function signIn(key) {
  if (!/^ak_[a-z0-9]{1,16}_[0-9a-f]{32}$/.test(key))
    return showDoor(key === "" ? "Paste your key first." : "That does not look like an admin key.");
  enter.disabled = true;
  try {
    const response = await fetch("/admin/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ key }),
    });
    if (response.ok) {
      keyInput.value = "";
      const session = await readSession();
      return session === undefined
        ? showDoor("This browser did not keep the sign-in. Off this machine it needs https, and cookies must be allowed.")
        : showRoom(session);
    }
    if (response.status === 401) return showDoor("This key was not accepted.");
    if (response.status === 429) return showDoor(`Too many tries: wait ${response.headers.get("retry-after") ?? "60"} s.`);
    return showDoor("The gateway could not sign you in now.");
  } catch {
    return showDoor("The gateway does not answer.");
  } finally {
    enter.disabled = false;
  }
}

/** Who this browser is signed in as. */
async function readSession() {
  const response = await fetch("/admin/session").catch(() => undefined);
  return response?.ok === true ? await response.json() : undefined;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  void signIn(keyInput.value.trim());
});

async function signOut() {
  await fetch("/admin/logout", { method: "POST" }).catch(() => undefined);
  showDoor();
}

byId("leave").addEventListener("click", () => void signOut());

const present = await readSession();
if (present === undefined) showDoor();
else showRoom(present);
