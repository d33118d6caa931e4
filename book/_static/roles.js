// docutils lists the cited works with roles of which one is withdrawn (doc-biblioentry) and the
// other asks for items that it does not get.
document.addEventListener('DOMContentLoaded', () => {
  for (const list of document.querySelectorAll('.citation-list')) {
    for (const entry of list.children) entry.setAttribute('role', 'listitem')
  }
})
