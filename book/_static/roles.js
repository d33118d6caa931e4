// docutils lists the cited works with roles of which one is withdrawn (doc-biblioentry) and the
// other asks for items that it does not get; some buttons of the theme have a picture and no name.
document.addEventListener('DOMContentLoaded', () => {
  for (const list of document.querySelectorAll('.citation-list')) {
    for (const entry of list.children) entry.setAttribute('role', 'listitem')
  }
  for (const button of document.querySelectorAll('button:not([aria-label])')) {
    const name = button.title || button.dataset.bsOriginalTitle
    if (name && !button.textContent.trim()) button.setAttribute('aria-label', name)
  }
})
