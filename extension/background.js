/** The button in the browser's bar opens the panel: beside the page, or as a window where the browser has no such place. */

if (chrome.sidePanel) chrome.sidePanel.setPanelBehavior({ openPanelOnActionClick: true });
else {
  chrome.action.onClicked.addListener((tab) =>
    chrome.windows.create({ url: `panel.html?tab=${tab.id}`, type: "popup", width: 420, height: 800 }),
  );
}
