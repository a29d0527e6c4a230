// A small virtual DOM: elements stay while their data changes, so that the focus and the selection
// stay too. Text only ever becomes text nodes and attributes, never markup.

export type Child = VNode | string | number | null | undefined | false | Child[];

export interface VNode {
  tag: string;
  props: Props;
  children: Child[];
}

export interface Props {
  key?: string;
  /** Properties of its style; attributes of that name are not allowed on this page. */
  css?: Record<string, string>;
  /** Called after each change of the element. */
  hook?: (element: HTMLElement) => void;
  [name: string]: unknown;
}

export function h(tag: string, props?: Props | null, ...children: Child[]): VNode {
  return { tag, props: props ?? {}, children };
}

const SVG = "http://www.w3.org/2000/svg";
const nodes = new WeakMap<Node, VNode>();

function flat(children: Child[], into: (VNode | string)[] = []): (VNode | string)[] {
  for (const child of children) {
    if (Array.isArray(child)) flat(child, into);
    else if (typeof child === "object" && child !== null) into.push(child);
    else if (child !== null && child !== undefined && child !== false) into.push(String(child));
  }
  return into;
}

/** Makes the children of `parent` equal to `children`. */
export function patch(parent: Element, children: Child[]): void {
  const wanted = flat(children);
  const keyed = new Map<string, Node>();
  const others: Node[] = [];
  for (const node of parent.childNodes) {
    const key = nodes.get(node)?.props.key;
    if (key === undefined) others.push(node);
    else keyed.set(key, node);
  }
  let next = 0;
  const kept = new Set<Node>();
  const placed = wanted.map((child) => {
    const node = typeof child === "object" && child.props.key !== undefined ? keyed.get(child.props.key) : others[next++];
    if (node && !kept.has(node) && isSame(node, child)) {
      kept.add(node);
      return node;
    }
    return create(parent, child);
  });
  for (const node of [...parent.childNodes]) if (!kept.has(node)) node.remove();
  let cursor: Node | null = parent.firstChild;
  placed.forEach((node, index) => {
    if (node === cursor) cursor = cursor.nextSibling;
    else parent.insertBefore(node, cursor);
    const child = wanted[index];
    if (typeof child === "string") {
      if (node.nodeValue !== child) node.nodeValue = child;
    } else if (child) {
      update(node as Element, child);
    }
  });
}

function isSame(node: Node, child: VNode | string): boolean {
  if (typeof child === "string") return node.nodeType === Node.TEXT_NODE;
  const before = nodes.get(node);
  return before !== undefined && before.tag === child.tag && before.props.key === child.props.key;
}

function create(parent: Element, child: VNode | string): Node {
  if (typeof child === "string") return document.createTextNode(child);
  const isSvg = child.tag === "svg" || (parent.namespaceURI === SVG && parent.tagName !== "foreignObject");
  return isSvg ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
}

function update(element: Element, child: VNode): void {
  const before = nodes.get(element)?.props ?? {};
  for (const name in before) if (!(name in child.props)) set(element, name, undefined);
  for (const name in child.props) {
    const value = child.props[name];
    if (value !== before[name] || name === "value" || name === "checked" || name === "css") set(element, name, value);
  }
  nodes.set(element, child);
  patch(element, child.children);
  child.props.hook?.(element as HTMLElement);
}

function set(element: Element, name: string, value: unknown): void {
  if (name === "key" || name === "hook") return;
  if (name === "css") {
    for (const [property, text] of Object.entries((value as Record<string, string> | undefined) ?? {})) {
      (element as HTMLElement).style.setProperty(property, text);
    }
  } else if (name.startsWith("on")) {
    (element as unknown as Record<string, unknown>)[name] = value ?? null;
  } else if (name === "value" || name === "checked") {
    const input = element as unknown as Record<string, unknown>;
    if (input[name] !== value) input[name] = value;
  } else if (value === undefined || value === null || value === false) {
    element.removeAttribute(name);
  } else {
    element.setAttribute(name, value === true ? "" : String(value));
  }
}
