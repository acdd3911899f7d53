// Words: the page's words in the visitor's language. WORDS comes before this, see words.py.

function language() {
  const tag = (document.documentElement.lang || navigator.language || 'en').toLowerCase();
  return ['de', 'es', 'zh'].find((known) => tag.startsWith(known)) || 'en';
}

function word(key, values = {}) {
  return WORDS[key][language()].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Elements say which word they show (data-word), are called by (-label) or hint at (-hint, -placeholder).
function translate(root) {
  const each = (name, put) => root.querySelectorAll(`[data-${name}]`).forEach((one) => put(one, word(one.getAttribute(`data-${name}`))));
  each('word', (one, text) => { one.textContent = text; });
  each('word-label', (one, text) => one.setAttribute('aria-label', text));
  each('word-hint', (one, text) => { one.title = text; });
  each('word-alt', (one, text) => { one.alt = text; });
  each('word-placeholder', (one, text) => { one.placeholder = text; });
}

// Calls `again` at once and whenever the visitor chooses another language in the settings.
function inEveryLanguage(again) {
  let shown = null;
  const look = () => {
    if (language() === shown) return;
    shown = language();
    again();
  };
  look();
  new MutationObserver(look).observe(document.documentElement, { attributes: true, attributeFilter: ['lang'] });
}

// Parts of the page talk to each other by events on the window.
function tell(what, detail) { window.dispatchEvent(new CustomEvent(`livetalk:${what}`, { detail })); }
function on(what, heard) { window.addEventListener(`livetalk:${what}`, (event) => heard(event.detail)); }
