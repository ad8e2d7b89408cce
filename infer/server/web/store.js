// Conversations in the browser. One is a tree: an edited question, or another answer, is a sibling; `chosen` says which child is shown.

const PREFIX = "seodang.";

const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

function stored(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise; // not readable, or storage is turned off
  }
}

function store(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    notice(t("The browser's storage is full or turned off: what is new is lost when the page is closed. Export conversations, and delete old ones."));
  }
}

// The newest first: {id, title, updated}.
const listed = () => stored("conversations", []);

const newConversation = () => ({ id: newId(), title: "", updated: Date.now(), system: "", nodes: {}, chosen: {} });

const opened = (id) => stored(`conversation.${id}`, null);

const forgotten = new Set(); // conversations of which an answer may still come in

// One without messages leaves no trace.
function keep(conversation) {
  const { id, title, nodes } = conversation;
  if (!Object.keys(nodes).length || forgotten.has(id)) return;
  conversation.updated = Date.now();
  store(`conversation.${id}`, conversation);
  store("conversations", [{ id, title, updated: conversation.updated }, ...listed().filter((each) => each.id !== id)]);
}

function forget({ id }) {
  forgotten.add(id);
  localStorage.removeItem(PREFIX + `conversation.${id}`);
  store(
    "conversations",
    listed().filter((each) => each.id !== id),
  );
}

const ROOT = "root";

function addNode(conversation, parent, node, show = true) {
  const made = { id: newId(), parent, ...node };
  conversation.nodes[made.id] = made;
  if (show) conversation.chosen[parent] = made.id;
  return made;
}

function removeNode(conversation, node) {
  delete conversation.nodes[node.id];
  const left = Object.values(conversation.nodes).filter((each) => each.parent === node.parent);
  if (conversation.chosen[node.parent] === node.id) conversation.chosen[node.parent] = left.at(-1)?.id;
}

const siblings = (conversation, node) => Object.values(conversation.nodes).filter((each) => each.parent === node.parent);

// What is shown, from the first message on; or, with `last`, what leads to that node.
function pathOf(conversation, last = null) {
  const path = [];
  if (last) {
    for (let node = last; node; node = conversation.nodes[node.parent]) path.unshift(node);
    return path;
  }
  for (let node = conversation.nodes[conversation.chosen[ROOT]]; node; node = conversation.nodes[conversation.chosen[node.id]]) path.push(node);
  return path;
}
