// Head: name of the page and the choice of what to do. The rest of the page follows data-mode of the body.

const tabs = [...element.querySelectorAll('[role="tab"]')];

function choose(mode, isToFocus) {
  document.body.dataset.mode = mode;
  tabs.forEach((tab) => {
    const isChosen = tab.dataset.mode === mode;
    tab.setAttribute('aria-selected', String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    if (isChosen && isToFocus) tab.focus();
  });
  tell('mode', mode);
}

tabs.forEach((tab, at) => {
  tab.addEventListener('click', () => choose(tab.dataset.mode));
  tab.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(tabs[(at + step + tabs.length) % tabs.length].dataset.mode, true);
  });
});

// An address may say what to begin with: ?mode=mirror.
const wanted = new URLSearchParams(window.location.search).get('mode');
choose(tabs.some((tab) => tab.dataset.mode === wanted) ? wanted : 'talk');
on('ready', () => tell('mode', document.body.dataset.mode)); // whoever is mounted later learns it, too
inEveryLanguage(() => translate(element));
