// docutils lists the cited works with roles of which one is withdrawn (doc-biblioentry) and the
// other asks for items that it does not get.
document.addEventListener('DOMContentLoaded', () => {
  for (const list of document.querySelectorAll('.citation-list')) {
    for (const entry of list.children) entry.setAttribute('role', 'listitem')
  }
})

// A table that is wider than the window scrolls, by keys too: looked at again whenever its size
// changes, as when the window does, a fold opens or a formula is set.
const tables = new ResizeObserver(changes => {
  for (const {target} of changes) {
    const table = target.closest('.pst-scrollable-table-container')
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0
    else table.removeAttribute('tabindex')
  }
})
document.addEventListener('DOMContentLoaded', () => {
  for (const table of document.querySelectorAll('.pst-scrollable-table-container')) {
    for (const part of [table, ...table.children]) tables.observe(part)
  }
})
