"""What runs in the visitor's browser: small scripts that need no answer from the server."""

import json

# The settings in the order of `page.draw`; they stand behind the "#" of the address, which browsers send to nobody.
NAMES = ("prompt", "negative", "seed", "randomise", "steps", "guidance", "size", "overflow", "length", "images")

# On a phone the pictures are far below the prompt.
SCROLL = """(...given) => {
  if (innerWidth <= 640) document.querySelector('#status').scrollIntoView({block: 'start'});
  return given;
}"""

REMEMBER = f"""(...given) => {{
  const names = {json.dumps(NAMES)};
  const pairs = names.map((name, index) => [name, String(given[index] ?? '')]);
  history.replaceState(null, '', '#' + new URLSearchParams(pairs.filter(([name, value]) => value !== '')));
}}"""

# What the address does not hold stays as it is, and so does everything once somebody types: the page starts empty.
RECALL = f"""(...given) => {{
  const names = {json.dumps(NAMES)}, kept = new URLSearchParams(location.hash.slice(1)), same = {{__type__: 'update'}};
  const typed = document.querySelector('#prompt textarea').value !== '';
  return given.map((value, index) => {{
    const text = kept.get(names[index]);
    if (typed || text === null) return same;
    if (typeof value === 'boolean') return text === 'true';
    return typeof value === 'number' ? (Number.isFinite(Number(text)) ? Number(text) : value) : text;
  }});
}}"""

COPY_LINK = """async () => {
  let text = 'The link is copied: it holds the prompt and the settings of the last picture.';
  try { await navigator.clipboard.writeText(location.href); }
  catch (error) { text = 'Copy the address of this page: it holds the prompt and the settings of the last picture.'; }
  return `<p class="status" role="status">${text}</p>`;
}"""

TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"


def write(text: str) -> str:
    """A script that puts `text` into the prompt."""
    return f"() => {json.dumps(text)}"


def append(text: str) -> str:
    """A script that puts `text` behind the prompt."""
    return f"(prompt) => (prompt.trimEnd() + ' ' + {json.dumps(text)}).trimStart()"
