// The conversation on the page. Everything that comes from the model or the user is text, never HTML.

function element(tag, { className, text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Adds the user's question to the list. */
export function showQuestion(list, text, image) {
  const turn = element("li", { className: "turn" }, element("h3", { text: "You" }), element("div", { className: "text", text }));
  if (image) turn.append(element("img", { src: image.url, alt: `Your image ${image.name}` }));
  list.append(turn);
  turn.scrollIntoView({ block: "nearest" });
}

/** One reply of the model on the page, which grows. */
export class ReplyView {
  #turn = element("li", { className: "turn" });
  #thought = element("details", { className: "thought thinking", open: "" });
  #summary = element("summary", { text: "Thought" });
  #thoughtText = element("div", { className: "text" });
  #answer = element("div", { className: "text" });
  #how = element("p", { className: "how" });
  #tools = new Map();

  constructor(list) {
    this.#thought.append(this.#summary, this.#thoughtText);
    this.#thought.hidden = true;
    this.#turn.append(element("h3", { text: "Model" }), this.#thought, this.#answer, this.#how);
    list.append(this.#turn);
    this.#turn.scrollIntoView({ block: "nearest" });
  }

  thought(text) {
    this.#thought.hidden = false;
    this.#grow(this.#thoughtText, text);
  }

  answer(text) {
    this.#grow(this.#answer, text);
  }

  #grow(place, text) {
    // One text node per reply: text is appended to it, so that a long reply costs no more than a short one.
    const node = place.firstChild ?? place.appendChild(document.createTextNode(""));
    node.appendData(text);
    // A reader who has scrolled up stays there.
    const below = this.#turn.getBoundingClientRect().bottom - innerHeight;
    if (below > -200 && below < 200) this.#how.scrollIntoView({ block: "nearest" });
  }

  thoughtEnded(words) {
    this.#thought.classList.remove("thinking");
    this.#summary.textContent = `Thought: ${words}`;
  }

  tool(index, text) {
    let line = this.#tools.get(index);
    if (line === undefined) {
      line = element("p", { className: "tool" });
      this.#tools.set(index, line);
      this.#how.before(line);
    }
    line.textContent = text;
  }

  /** Takes the reply away: there was none. */
  remove() {
    this.#turn.remove();
  }

  ended(words) {
    this.#thought.classList.remove("thinking");
    this.#how.textContent = words;
  }
}
