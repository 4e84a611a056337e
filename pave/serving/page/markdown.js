// Markdown of a card as elements: headings, paragraphs, lists, tables, code, bold, links. In: text that anybody may have
// written. Out: nodes made one by one, so that no text of it is ever read as HTML; only https links lead anywhere.

export function make(tag, facts = {}, ...children) {
  const { data, ...own } = facts;
  const node = Object.assign(document.createElement(tag), own);
  Object.assign(node.dataset, data);
  node.append(...children);
  return node;
}

export function markdown(text) {
  const lines = text.replace(/<!--[\s\S]*?-->/g, "").split(/\r?\n/);
  const found = document.createDocumentFragment();
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) lines.shift();
    else if (line.startsWith("```")) found.append(code(lines));
    else if (/^#{1,6} /.test(line)) found.append(heading(lines.shift()));
    else if (line.startsWith("|")) found.append(table(taken(lines, (each) => each.startsWith("|"))));
    else if (/^[-*] /.test(line)) found.append(list(taken(lines, (each) => /^([-*] |  )/.test(each))));
    else found.append(make("p", {}, ...inline(taken(lines, plain).join(" "))));
  }
  return found;
}

const plain = (line) => line.trim() && !/^(```|#{1,6} |\||[-*] )/.test(line);

// The first lines that fit, and the very first one in any case.
function taken(lines, fits) {
  const found = [lines.shift()];
  while (lines.length && fits(lines[0])) found.push(lines.shift());
  return found;
}

function code(lines) {
  const found = taken(lines, (line) => !line.startsWith("```")).slice(1);
  lines.shift();
  return make("pre", {}, make("code", {}, found.join("\n")));
}

function heading(line) {
  const level = Math.min(6, line.indexOf(" ") + 2); // below the titles of the page
  return make(`h${level}`, {}, ...inline(line.replace(/^#+ /, "")));
}

function list(lines) {
  const items = [];
  for (const line of lines) {
    if (line.startsWith("  ") && items.length) items[items.length - 1] += ` ${line.trim()}`;
    else items.push(line.slice(2));
  }
  return make("ul", {}, ...items.map((item) => make("li", {}, ...inline(item))));
}

function table(lines) {
  const rows = lines.map((line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim()));
  const body = rows.filter((cells) => !cells.every((cell) => /^:?-+:?$/.test(cell)));
  const headed = body.length < rows.length && body[0].some((cell) => cell);
  const made = body.map((cells, i) => {
    const tag = headed && i === 0 ? "th" : "td";
    return make("tr", {}, ...cells.map((cell) => make(tag, {}, ...inline(cell))));
  });
  const shown = body[0].some((cell) => cell) ? made : made.slice(1);
  return make("div", { className: "wide" }, make("table", {}, ...shown));
}

const SPANS = /`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^)\s]+)\)|\\([\\`|<>[\]*_])/g;

function inline(text) {
  const found = [];
  let last = 0;
  for (const match of text.matchAll(SPANS)) {
    found.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    const [, quoted, bold, label, address, escaped] = match;
    if (quoted !== undefined) found.push(make("code", {}, quoted));
    else if (bold !== undefined) found.push(make("strong", {}, bold));
    else if (escaped !== undefined) found.push(escaped);
    else if (!address.startsWith("https://")) found.push(label);
    else found.push(make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, label));
  }
  return [...found, text.slice(last)];
}
